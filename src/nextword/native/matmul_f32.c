// Rows of float32, float16 or bfloat16 times float32 vectors.
//
// The arithmetic, the same on every path: eight sums, sum i being over columns i, i + 8, ... one after the other in fused
// multiply-adds (columns behind the end count as zeros), then ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
#include "matmul.h"

static float sum_of_eight(const float *s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static float row_times_vector(const segment_job *job, const uint8_t *row, const float *x) {
    const int64_t size = block_of(job->type).bytes;
    float sums[8] = {0};
    for (int64_t at = 0; at < job->width; at += 8) {
        const int64_t count = job->width - at < 8 ? job->width - at : 8;
        float w[8] = {0}, v[8] = {0};
        dequantize_row(job->type, row + at * size, count, w);
        memcpy(v, x + at, (size_t)count * sizeof(float));
        for (int i = 0; i < 8; i++) sums[i] = __builtin_fmaf(w[i], v[i], sums[i]);
    }
    return sum_of_eight(sums);
}

void multiply_floats(const segment_job *job, int64_t row, int64_t end) {
    for (; row < end; row++)
        for (int64_t t = 0; t < job->batch; t++)
            store_sum(job, row, t, row_times_vector(job, job->data + row * job->row_bytes, job->x + t * job->width));
}
