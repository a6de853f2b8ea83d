// Norms and activation functions of inference: rows shared out among the pool's threads.
#include "elementwise.h"
#include "f32_kernels.h"

#define CHUNK_NUMBERS 16384  // some microseconds; fewer are not worth sharing out

typedef struct {
    const f32_kernels *kernels;
    norm n;
    const float *x;
    float *y;
    int64_t rows, stride, heads, width, rows_a_chunk;  // `heads` times `width` of a row's `stride` numbers
} norm_job;

static void norm_chunk(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++)
        for (int64_t head = 0; head < job->heads; head++) {
            const int64_t from = row * job->stride + head * job->width;
            job->kernels->normalize_row(&job->n, job->x + from, job->width, job->y + from);
        }
}

static void share_norms(norm_job job) {
    job.kernels = find_f32_kernels();
    job.rows_a_chunk = CHUNK_NUMBERS / (job.heads * job.width) + 1;
    pool_run(norm_chunk, &job, chunks_of(job.rows, job.rows_a_chunk));
}

void normalize(const norm *n, const float *x, int64_t rows, int64_t width, float *y) {
    share_norms((norm_job){NULL, *n, x, y, rows, width, 1, width, 0});
}

void normalize_heads(const norm *n, float *x, int64_t rows, int64_t stride, int64_t heads, int64_t width) {
    share_norms((norm_job){NULL, *n, x, x, rows, stride, heads, width, 0});
}

typedef struct {
    const f32_kernels *kernels;
    activation_function f;
    const float *x;  // (rows, width), or if `gated` (rows, 2 width): what is activated, and up
    float *y;
    int64_t gated, rows, width, rows_a_chunk;
} activation_job;

static void activation_chunk(void *pointer, int64_t chunk) {
    const activation_job *job = pointer;
    const int64_t width = job->width, stride = width * (job->gated ? 2 : 1);
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *x = job->x + row * stride;
        job->kernels->activate_row(job->f, x, job->gated ? x + width : NULL, width, job->y + row * width);
    }
}

void activate(activation_function f, int gated, const float *x, int64_t rows, int64_t width, float *y) {
    activation_job job = {find_f32_kernels(), f, x, y, gated, rows, width, CHUNK_NUMBERS / (2 * width) + 1};
    pool_run(activation_chunk, &job, chunks_of(rows, job.rows_a_chunk));
}
