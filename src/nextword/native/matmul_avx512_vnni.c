// The kernels of matrix products, compiled for AVX-512 VNNI.
#pragma GCC optimize("O2")  // as fast as -O3 for intrinsics, and compiled in two thirds of the time
#include "matmul.h"

#if NW_X86
#if defined(NW_EMULATE_VNNI)  // to test this with what AVX2 has
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")
#endif
#define VECTOR_VNNI
#define NAME(function) function##_avx512_vnni
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_panel.inc"
#include "matmul_floats.inc"
#endif
