// The kernels of matrix products, compiled for AVX-VNNI.
#pragma GCC optimize("O2")  // as fast as -O3 for intrinsics, and compiled in two thirds of the time
#include "matmul.h"

#if NW_X86
#if defined(NW_EMULATE_VNNI)  // to test this with what AVX2 has
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define VECTOR_VNNI
#define NAME(function) function##_avx_vnni
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_panel.inc"
#include "matmul_floats.inc"
#endif
