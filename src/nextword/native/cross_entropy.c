#include "f32_kernels.h"

#define CHUNK_NUMBERS 16384

EXPORT int nw_cross_entropy(void *logits, int bfloat16, const int64_t *targets, int64_t rows, int64_t width,
                            int64_t ignored, int gradient, float *losses, int threads) {
    entropy_job job = {logits, bfloat16, targets, rows, width, CHUNK_NUMBERS / width + 1, ignored, gradient, losses, 0};
    pool_run_on_torch(find_training_kernels()->entropy, &job, chunks_of(rows, job.rows_a_chunk), threads);
    return !job.failed;
}
