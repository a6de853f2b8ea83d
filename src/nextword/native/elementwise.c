// Training's passes between matrix products. Torch runs each as several operators, every one a pass over memory that
// leaves a tensor behind. Here each is one pass, and what the backward pass can form again from its input is not kept.
// Chunks depend on the shapes alone and sums are added in their order: results do not depend on threads. Multiply-adds
// are rounded twice, on every instruction set.
#include "elementwise.h"

#include <math.h>

#define CHUNK_NUMBERS 8192  // some microseconds; fewer are not worth sharing out

exp_range nw_exp_range = {-87.0f, 88.0f};

static int64_t rows_of_a_chunk(int64_t width) { return CHUNK_NUMBERS / width + 1; }

// ---- norms

typedef struct {
    const float *x, *weight;
    float eps;
    int64_t rows, width, rows_a_chunk;
    float *y, *inverse;  // inverse (rows,): 1 / sqrt(mean(x^2) + eps), or NULL
} norm_job;

// The sum of a b, or of a b c. Sixteen sums side by side: the compiler makes vectors of them, and rounding stays small.
INLINE float sum_of_products(const float *a, const float *b, const float *c, int64_t width) {
    float partial[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) partial[j] += a[i + j] * b[i + j] * (c ? c[i + j] : 1.0f);
    for (; i < width; i++) sum += a[i] * b[i] * (c ? c[i] : 1.0f);
    for (int j = 0; j < 16; j++) sum += partial[j];
    return sum;
}

INLINE void norm_rows(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    const int64_t width = job->width;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width, *restrict weight = job->weight;
        float *restrict y = job->y + row * width;
        const float r = 1.0f / sqrtf(sum_of_products(x, x, NULL, width) / (float)width + job->eps);
        if (job->inverse) job->inverse[row] = r;
        for (int64_t i = 0; i < width; i++) y[i] = x[i] * r * weight[i];
    }
}
COMPILED_TWICE(norm)

// RMSNorm. `inverse` (rows,) takes what the backward pass needs; it may be NULL.
EXPORT void nw_rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y,
                        float *inverse, int threads) {
    norm_job job = {x, weight, eps, rows, width, rows_of_a_chunk(width), y, inverse};
    pool_run_on_torch(norm_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// ---- backward pass of RMSNorm

#define MIN_ROWS 16  // a chunk leaves a row of sums; they shall not outweigh its work

typedef struct {
    const float *x, *weight, *inverse, *residual_grad;
    int64_t rows, width, rows_a_chunk;
    float *y, *dx, *sums;
} norm_backward_job;

// dx = r w dy - x r^3 / width sum(w dy x) + residual_grad; y replaces dy; a chunk's dy x r are summed in its row of sums.
INLINE void norm_backward_rows(void *pointer, int64_t chunk) {
    const norm_backward_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    const float *restrict weight = job->weight;
    float *restrict sums = job->sums + chunk * width;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width, *restrict residual = job->residual_grad + row * width;
        float *restrict dy = job->y + row * width, *restrict dx = job->dx + row * width;
        float r = job->inverse[row], slope = sum_of_products(x, dy, weight, width) * r * r * r / (float)width;
        if (job->residual_grad)
            for (int64_t i = 0; i < width; i++) dx[i] = dy[i] * weight[i] * r - x[i] * slope + residual[i];
        else
            for (int64_t i = 0; i < width; i++) dx[i] = dy[i] * weight[i] * r - x[i] * slope;
        for (int64_t i = 0; i < width; i++) {
            float normed = x[i] * r;
            sums[i] += dy[i] * normed;
            dy[i] = normed * weight[i];
        }
    }
}
COMPILED_TWICE(norm_backward)

static int64_t backward_rows_a_chunk(int64_t width) {
    const int64_t rows = 2 * CHUNK_NUMBERS / width + 1;
    return rows < MIN_ROWS ? MIN_ROWS : rows;
}

// How many rows of `sums` nw_rms_norm_backward needs.
EXPORT int64_t nw_rms_norm_sums(int64_t rows, int64_t width) { return chunks_of(rows, backward_rows_a_chunk(width)); }

// `dy` becomes y, `sums`' first row the gradient of the weight; `residual_grad`, added to dx, may be NULL.
EXPORT void nw_rms_norm_backward(const float *x, const float *weight, const float *inverse, const float *residual_grad,
                                 int64_t rows, int64_t width, float *dy, float *dx, float *sums, int threads) {
    norm_backward_job job = {x, weight, inverse, residual_grad, rows, width, backward_rows_a_chunk(width), dy, dx, sums};
    int64_t chunks = chunks_of(rows, job.rows_a_chunk);
    pool_run_on_torch(norm_backward_kernel(), &job, chunks, threads);
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[chunk * width + i];
}

// ---- SwiGLU

typedef struct {
    const float *x;  // (rows, 2 width): gate and up
    int64_t rows, width, rows_a_chunk;
    float *y, *dx;
} swiglu_job;

INLINE void swiglu_rows(void *pointer, int64_t chunk) {
    const swiglu_job *job = pointer;
    const exp_range range = nw_exp_range;
    const int64_t width = job->width;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *restrict gate = job->x + row * 2 * width, *restrict up = gate + width;
        float *restrict h = job->y + row * width;
        for (int64_t i = 0; i < width; i++) h[i] = gate[i] / (1.0f + exp_f32(-gate[i], range)) * up[i];
    }
}
COMPILED_TWICE(swiglu)

// h = silu(gate) up, for rows of (gate, up) side by side.
EXPORT void nw_swiglu(const float *gates, int64_t rows, int64_t width, float *h, int threads) {
    swiglu_job job = {gates, rows, width, rows_of_a_chunk(2 * width), h, NULL};
    pool_run_on_torch(swiglu_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// h replaces its gradient.
INLINE void swiglu_backward_rows(void *pointer, int64_t chunk) {
    const swiglu_job *job = pointer;
    const exp_range range = nw_exp_range;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *restrict gate = job->x + row * 2 * width, *restrict up = gate + width;
        float *restrict h = job->y + row * width, *restrict d = job->dx + row * 2 * width, *restrict d_up = d + width;
        for (int64_t i = 0; i < width; i++) {
            float g = gate[i], sigmoid = 1.0f / (1.0f + exp_f32(-g, range)), silu = g * sigmoid, dh = h[i];
            d[i] = dh * up[i] * (sigmoid + silu * (1.0f - sigmoid));
            d_up[i] = dh * silu;
            h[i] = silu * up[i];
        }
    }
}
COMPILED_TWICE(swiglu_backward)

// `h` holds its gradient when called and h when done; `dx` becomes the gradient of `gates`.
EXPORT void nw_swiglu_backward(const float *gates, int64_t rows, int64_t width, float *h, float *dx, int threads) {
    swiglu_job job = {gates, rows, width, rows_of_a_chunk(2 * width), h, dx};
    pool_run_on_torch(swiglu_backward_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// ---- rotary positions, on the leading heads of rows of `heads` heads

typedef struct {
    int64_t batch, time, heads, rope_heads, head_width, rope_width;
    const float *cosine, *sine;
    int64_t table_stride;  // from one batch row's angles to the next's, 0 where all stand at the same positions
} rope_shape;

typedef struct {
    const rope_shape *shape;
    const head_rows *gradients;
    int64_t rows_a_chunk;
    float *x;
} rope_job;

INLINE void rope_rows(void *pointer, int64_t chunk) {
    const rope_job *job = pointer;
    const rope_shape *s = job->shape;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, s->batch * s->time);
    const int64_t half = s->rope_width / 2;
    for (; row < end; row++) {
        int64_t angles = row / s->time * s->table_stride + row % s->time * s->rope_width;
        const float *cosine = s->cosine + angles, *sine = s->sine + angles;
        float *x = job->x + row * s->heads * s->head_width;
        for (int64_t head = 0; head < s->rope_heads; head++, x += s->head_width)
            rope_head(cosine, sine, sine + half, half, NULL, x);
    }
}
COMPILED_TWICE(rope)

// The gradients of queries, keys and values, the first two rotated back, side by side again.
INLINE void rope_backward_rows(void *pointer, int64_t chunk) {
    const rope_job *job = pointer;
    const rope_shape *s = job->shape;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, s->batch * s->time);
    const int64_t half = s->rope_width / 2;
    for (; row < end; row++) {
        int64_t b = row / s->time, t = row % s->time, angles = b * s->table_stride + t * s->rope_width, done = 0;
        const float *cosine = s->cosine + angles, *sine = s->sine + angles;
        float *out = job->x + row * s->heads * s->head_width;
        for (const head_rows *g = job->gradients; g < job->gradients + 3; g++) {
            const float *in = (const float *)g->values + b * g->batch_stride + t * g->time_stride;
            for (int64_t head = 0; head < g->heads; head++, done++, in += g->head_stride, out += s->head_width) {
                const int64_t width = done < s->rope_heads ? s->rope_width : 0;
                if (width) rope_head(cosine, sine + half, sine, half, in, out);
                memcpy(out + width, in + width, (size_t)(s->head_width - width) * sizeof *out);
            }
        }
    }
}
COMPILED_TWICE(rope_backward)

// Rotates the leading `rope_heads` heads of x (batch, time, heads, head_width) in place.
EXPORT void nw_rope(const rope_shape *shape, float *x, int threads) {
    rope_job job = {shape, NULL, rows_of_a_chunk(shape->heads * shape->head_width), x};
    pool_run_on_torch(rope_kernel(), &job, chunks_of(shape->batch * shape->time, job.rows_a_chunk), threads);
}

// dx (batch, time, heads, head_width) from the `gradients` of queries, keys and values.
EXPORT void nw_rope_backward(const rope_shape *shape, const head_rows *gradients, float *dx, int threads) {
    rope_job job = {shape, gradients, rows_of_a_chunk(shape->heads * shape->head_width), dx};
    pool_run_on_torch(rope_backward_kernel(), &job, chunks_of(shape->batch * shape->time, job.rows_a_chunk), threads);
}
