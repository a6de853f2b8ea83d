// The kernels of quantized matrices, compiled for AVX2.
#include "matmul.h"

#if NW_X86
#pragma GCC target("avx2,fma,f16c")
#define VECTOR_AVX2
#define NAME(function) function##_avx2
#include "matmul_few.inc"
#endif
