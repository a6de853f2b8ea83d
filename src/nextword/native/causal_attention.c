#include "f32_kernels.h"

EXPORT int nw_causal_attention(causal_attention *a, int threads) {
    const int64_t chunks = chunks_of(a->time, ATTENTION_CHUNK);
    pool_run_on_torch(find_training_kernels()->attend_chunk, a, chunks * a->batch * a->queries.heads, threads);
    return !a->failed;
}

EXPORT int nw_causal_attention_backward(causal_attention *a, int threads) {
    pool_run_on_torch(find_training_kernels()->attend_backward, a, a->batch * a->keys.heads, threads);
    return !a->failed;
}
