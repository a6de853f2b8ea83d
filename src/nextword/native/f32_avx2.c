#include "cpu.h"

#if NW_X86
#define USE_AVX2
#include "vector_f32.h"

#include "kv_cache.inc"
#include "layer_ops.inc"

#include "attention.inc"
#include "causal_attention.inc"
#include "training_rows.inc"

const f32_kernels kernels_avx2 = F32_KERNELS;
#endif
