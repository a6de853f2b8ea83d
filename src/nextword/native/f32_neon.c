#if defined(__aarch64__)
#define USE_NEON
#include "vector_f32.h"

#include "kv_cache.inc"
#include "layer_ops.inc"

#include "attention.inc"
#include "causal_attention.inc"
#include "training_rows.inc"

const f32_kernels kernels_neon = F32_KERNELS;
#endif
