#pragma GCC optimize("O2")  // for the compiler's sake: -O3 takes it several times as long
#include "vector_f32.h"

#include "kv_cache.inc"
#include "layer_ops.inc"

#include "attention.inc"
#include "causal_attention.inc"
#include "training_rows.inc"

static const f32_kernels kernels_portable = F32_KERNELS;

#if NW_X86
extern const f32_kernels kernels_avx2;
extern const training_kernels training_avx512;

const f32_kernels *find_f32_kernels(void) { return nw_level() ? &kernels_avx2 : &kernels_portable; }
#elif defined(__aarch64__)
extern const f32_kernels kernels_neon;

const f32_kernels *find_f32_kernels(void) { return nw_level() ? &kernels_neon : &kernels_portable; }
#else
const f32_kernels *find_f32_kernels(void) { return &kernels_portable; }
#endif

const training_kernels *find_training_kernels(void) {
#if NW_X86
    if (nw_level() == LEVEL_AVX512_VNNI) return &training_avx512;
#endif
    return &find_f32_kernels()->training;
}
