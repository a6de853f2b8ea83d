// The kernels of training in AVX-512, with the same bits as in AVX2.
#include "cpu.h"

#if NW_X86
#define USE_AVX2
#define USE_AVX512
#include "vector_f32.h"

#include "causal_attention.inc"
#include "training_rows.inc"

const training_kernels training_avx512 = TRAINING_KERNELS;
#endif
