#include "f32_kernels.h"

#if NW_X86
extern const causal_kernels causal_avx512;
#endif

static causal_kernels kernels_here(void) {
#if NW_X86
    if (nw_level() == LEVEL_AVX512_VNNI) return causal_avx512;
#endif
    return find_f32_kernels()->causal;
}

EXPORT int nw_causal_attention(causal_attention *a, int threads) {
    const int64_t chunks = chunks_of(a->time, ATTENTION_CHUNK);
    pool_run_on_torch(kernels_here().forward, a, chunks * a->batch * a->queries.heads, threads);
    return !a->failed;
}

EXPORT int nw_causal_attention_backward(causal_attention *a, int threads) {
    pool_run_on_torch(kernels_here().backward, a, a->batch * a->keys.heads, threads);
    return !a->failed;
}
