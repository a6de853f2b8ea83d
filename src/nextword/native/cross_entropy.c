// Cross-entropy of rows of logits, and its gradient, in one pass.
#include <math.h>

#include "elementwise.h"

#define CHUNK_NUMBERS 16384

typedef struct {
    const int64_t *targets;
    int64_t rows, width, rows_a_chunk, ignored;
    int gradient;
    float *logits, *losses;
} entropy_job;

INLINE float largest(const float *x, int64_t width) {
    float partial[16], max = x[0];
    int64_t i = 0;
    for (int j = 0; j < 16; j++) partial[j] = x[0];
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) partial[j] = partial[j] > x[i + j] ? partial[j] : x[i + j];
    for (; i < width; i++) max = max > x[i] ? max : x[i];
    for (int j = 0; j < 16; j++) max = max > partial[j] ? max : partial[j];
    return max;
}

// The sum of exp(x - max); with `keep` each where its logit was.
INLINE float sum_of_exp(float *x, int64_t width, float max, int keep) {
    const exp_range range = nw_exp_range;
    float partial[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        float e[16];
        for (int j = 0; j < 16; j++) e[j] = exp_f32(x[i + j] - max, range);
        for (int j = 0; j < 16; j++) partial[j] += e[j];
        if (keep)
            for (int j = 0; j < 16; j++) x[i + j] = e[j];
    }
    for (; i < width; i++) {
        float e = exp_f32(x[i] - max, range);
        sum += e;
        if (keep) x[i] = e;
    }
    for (int j = 0; j < 16; j++) sum += partial[j];
    return sum;
}

INLINE void entropy_rows(void *pointer, int64_t chunk) {
    const entropy_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        float *x = job->logits + row * width;
        int64_t target = job->targets[row];
        if (target == job->ignored) {
            job->losses[row] = 0;
            if (job->gradient) memset(x, 0, (size_t)width * sizeof *x);
            continue;
        }
        float max = largest(x, width), own = x[target], sum = sum_of_exp(x, width, max, job->gradient);
        job->losses[row] = logf(sum) + max - own;
        if (!job->gradient) continue;
        float scale = 1.0f / sum;
        for (int64_t i = 0; i < width; i++) x[i] *= scale;
        x[target] -= 1.0f;
    }
}
COMPILED_TWICE(entropy)

// -ln softmax(logits)[target] of each row, 0 where the target is `ignored`; with `gradient`, logits become theirs.
EXPORT void nw_cross_entropy(float *logits, const int64_t *targets, int64_t rows, int64_t width, int64_t ignored,
                             int gradient, float *losses, int threads) {
    entropy_job job = {targets, rows, width, CHUNK_NUMBERS / width + 1, ignored, gradient, logits, losses};
    pool_run_on_torch(entropy_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
}
