// Training's attention in AVX-512, with the same bits as in AVX2.
#include "cpu.h"

#if NW_X86
#define USE_AVX2
#define USE_AVX512
#include "vector_f32.h"

#include "causal_attention.inc"

const causal_kernels causal_avx512 = CAUSAL_KERNELS;
#endif
