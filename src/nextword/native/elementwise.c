// Training's passes between matrix products. Torch runs each as several operators, every one a pass over memory that
// leaves a tensor behind. Here each is one pass, and what the backward pass can form again from its input is not kept.
// Chunks depend on the shapes alone and sums are added in their order: results do not depend on threads. Multiply-adds
// are rounded twice, on every instruction set.
#include "f32_kernels.h"

#include <math.h>

#define CHUNK_NUMBERS 8192  // some microseconds; fewer are not worth sharing out

exp_range nw_exp_range = {-87.0f, 88.0f};

static int64_t rows_of_a_chunk(int64_t width) { return CHUNK_NUMBERS / width + 1; }

// ---- norms

typedef struct {
    const float *x, *weight;
    float eps;
    int64_t rows, width, rows_a_chunk;
    void *y;
    float *inverse;  // (rows,): 1 / sqrt(mean(x^2) + eps), or NULL
} norm_job;

// The sum of a b, or of a b c. Sixteen sums side by side: the compiler makes vectors of them, and rounding stays small.
INLINE float sum_of_products(const float *a, const void *b, const float *c, int64_t width, const int bfloat16) {
    float partial[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) partial[j] += a[i + j] * get(b, i + j, bfloat16) * (c ? c[i + j] : 1.0f);
    for (; i < width; i++) sum += a[i] * get(b, i, bfloat16) * (c ? c[i] : 1.0f);
    for (int j = 0; j < 16; j++) sum += partial[j];
    return sum;
}

INLINE void norm_rows(void *pointer, int64_t chunk, const int bfloat16) {
    const norm_job *job = pointer;
    const int64_t width = job->width;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width, *restrict weight = job->weight;
        void *restrict y = numbers_from(job->y, row * width, bfloat16);
        const float r = 1.0f / sqrtf(sum_of_products(x, x, NULL, width, 0) / (float)width + job->eps);
        if (job->inverse) job->inverse[row] = r;
        for (int64_t i = 0; i < width; i++) put(y, i, x[i] * r * weight[i], bfloat16);
    }
}
COMPILED(norm)

// RMSNorm, y being float32 or bfloat16. `inverse` (rows,) takes what the backward pass needs; it may be NULL.
EXPORT void nw_rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, void *y,
                        int bfloat16, float *inverse, int threads) {
    norm_job job = {x, weight, eps, rows, width, rows_of_a_chunk(width), y, inverse};
    pool_run_on_torch(norm_kernel(bfloat16), &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// ---- backward pass of RMSNorm

#define MIN_ROWS 16  // a chunk leaves a row of sums; they shall not outweigh its work

typedef struct {
    const float *x, *weight, *inverse, *residual_grad;
    int64_t rows, width, rows_a_chunk;
    void *y;
    float *dx, *sums;
} norm_backward_job;

// dx = r w dy - x r^3 / width sum(w dy x) + residual_grad; y replaces dy; a chunk's dy x r are summed in its row of sums.
INLINE void norm_backward_rows(void *pointer, int64_t chunk, const int bfloat16) {
    const norm_backward_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    const float *restrict weight = job->weight;
    float *restrict sums = job->sums + chunk * width;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width, *restrict residual = job->residual_grad + row * width;
        void *restrict dy = numbers_from(job->y, row * width, bfloat16);
        float *restrict dx = job->dx + row * width, r = job->inverse[row];
        const float slope = sum_of_products(x, dy, weight, width, bfloat16) * r * r * r / (float)width;
        for (int64_t i = 0; i < width; i++) dx[i] = get(dy, i, bfloat16) * weight[i] * r - x[i] * slope;
        if (job->residual_grad)
            for (int64_t i = 0; i < width; i++) dx[i] += residual[i];
        for (int64_t i = 0; i < width; i++) {
            float normed = x[i] * r;
            sums[i] += get(dy, i, bfloat16) * normed;
            put(dy, i, normed * weight[i], bfloat16);
        }
    }
}
COMPILED(norm_backward)

static int64_t backward_rows_a_chunk(int64_t width) {
    const int64_t rows = 2 * CHUNK_NUMBERS / width + 1;
    return rows < MIN_ROWS ? MIN_ROWS : rows;
}

// How many rows of `sums` nw_rms_norm_backward needs.
EXPORT int64_t nw_rms_norm_sums(int64_t rows, int64_t width) { return chunks_of(rows, backward_rows_a_chunk(width)); }

// `dy`, float32 or bfloat16, becomes y, `sums`' first row the gradient of the weight; `residual_grad`, added to dx, may be NULL.
EXPORT void nw_rms_norm_backward(const float *x, const float *weight, const float *inverse, const float *residual_grad,
                                 int64_t rows, int64_t width, void *dy, int bfloat16, float *dx, float *sums,
                                 int threads) {
    norm_backward_job job = {x, weight, inverse, residual_grad, rows, width, backward_rows_a_chunk(width), dy, dx, sums};
    int64_t chunks = chunks_of(rows, job.rows_a_chunk);
    pool_run_on_torch(norm_backward_kernel(bfloat16), &job, chunks, threads);
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[chunk * width + i];
}

// ---- SwiGLU, all of it float32 or all bfloat16

// h = silu(gate) up, for rows of (gate, up) side by side.
EXPORT void nw_swiglu(const void *gates, int bfloat16, int64_t rows, int64_t width, void *h, int threads) {
    swiglu_job job = {gates, bfloat16, rows, width, rows_of_a_chunk(2 * width), h, NULL};
    pool_run_on_torch(find_training_kernels()->swiglu, &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// `h` holds its gradient when called and h when done; `dx` becomes the gradient of `gates`.
EXPORT void nw_swiglu_backward(const void *gates, int bfloat16, int64_t rows, int64_t width, void *h, void *dx,
                               int threads) {
    swiglu_job job = {gates, bfloat16, rows, width, rows_of_a_chunk(2 * width), h, dx};
    pool_run_on_torch(find_training_kernels()->swiglu_backward, &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// ---- rotary positions

// Rotates the leading `rope_heads` heads of x (batch, time, heads, head_width), float32 or bfloat16, in place.
EXPORT void nw_rope(const rope_shape *shape, void *x, int bfloat16, int threads) {
    rope_job job = {shape, NULL, bfloat16, rows_of_a_chunk(shape->heads * shape->head_width), x};
    const int64_t chunks = chunks_of(shape->batch * shape->time, job.rows_a_chunk);
    pool_run_on_torch(find_training_kernels()->rope, &job, chunks, threads);
}

// dx (batch, time, heads, head_width) from the `gradients` of queries, keys and values, all of one type.
EXPORT void nw_rope_backward(const rope_shape *shape, const head_rows *gradients, void *dx, int threads) {
    rope_job job = {shape, gradients, gradients->bfloat16, rows_of_a_chunk(shape->heads * shape->head_width), dx};
    const int64_t chunks = chunks_of(shape->batch * shape->time, job.rows_a_chunk);
    pool_run_on_torch(find_training_kernels()->rope_backward, &job, chunks, threads);
}
