// The kernels of matrix products, compiled for AVX2.
#pragma GCC optimize("O2")  // as fast as -O3 for intrinsics, and compiled in two thirds of the time
#include "matmul.h"

#if NW_X86
#pragma GCC target("avx2,fma,f16c")
#define VECTOR_AVX2
#define NAME(function) function##_avx2
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_panel.inc"
#include "matmul_floats.inc"
#endif
