// Training's passes between matrix products are here too. Torch runs each as several operators, every one a pass over
// memory that leaves a tensor behind. Here each is one pass, and what the backward pass can form again from its input is
// not kept. Chunks depend on the shapes alone and sums are added in their order: results do not depend on threads.
#include "elementwise.h"

#include <math.h>

#define CHUNK_NUMBERS 8192  // some microseconds; fewer are not worth sharing out

exp_range nw_exp_range = {-87.0f, 88.0f};

static int64_t rows_of_a_chunk(int64_t width) { return CHUNK_NUMBERS / width + 1; }

// ---- norms

typedef struct {
    norm n;
    const float *x;
    int64_t rows, stride, heads, width, rows_a_chunk;  // `heads` times `width` of a row's `stride` numbers
    float *y, *inverse;                                // inverse (rows,): 1 / sqrt(mean(x^2) + eps), or NULL
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

INLINE float mean(const float *x, int64_t width) {
    float partial[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) partial[j] += x[i + j];
    for (; i < width; i++) sum += x[i];
    for (int j = 0; j < 16; j++) sum += partial[j];
    return sum / (float)width;
}

// y may be x: each number is read before it is written, which is what `ivdep` promises.
INLINE void norm_row(const norm *n, int64_t width, const float *x, float *y, float *inverse) {
    if (!n->rms) {
        const float middle = mean(x, width);
#pragma GCC ivdep
        for (int64_t i = 0; i < width; i++) y[i] = x[i] - middle;
        x = y;
    }
    const float r = 1.0f / sqrtf(sum_of_products(x, x, NULL, width) / (float)width + n->eps);
    if (inverse) *inverse = r;
#pragma GCC ivdep
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * r * n->weight[i];
    for (int64_t i = 0; n->bias && i < width; i++) y[i] += n->bias[i];
}

INLINE void norm_rows(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    const norm n = job->n;
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++)
        for (int64_t head = 0; head < job->heads; head++) {
            const int64_t from = row * job->stride + head * job->width;
            norm_row(&n, job->width, job->x + from, job->y + from, job->inverse ? job->inverse + row : NULL);
        }
}
COMPILED_TWICE(norm)

static void share_norms(norm_job job, int threads) {
    job.rows_a_chunk = rows_of_a_chunk(job.heads * job.width);
    share_chunks(norm_kernel(), &job, chunks_of(job.rows, job.rows_a_chunk), threads);
}

void normalize(const norm *n, const float *x, int64_t rows, int64_t width, float *y) {
    share_norms((norm_job){*n, x, rows, width, 1, width, 0, y, NULL}, 0);
}

void normalize_heads(const norm *n, float *x, int64_t rows, int64_t stride, int64_t heads, int64_t width) {
    share_norms((norm_job){*n, x, rows, stride, heads, width, 0, x, NULL}, 0);
}

// RMSNorm. `inverse` (rows,) takes what the backward pass needs; it may be NULL.
EXPORT void nw_rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y,
                        float *inverse, int threads) {
    share_norms((norm_job){{weight, NULL, 1, eps}, x, rows, width, 1, width, 0, y, inverse}, threads);
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
    share_chunks(norm_backward_kernel(), &job, chunks, threads);
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[chunk * width + i];
}

// ---- activation functions, alone or times `up` (SwiGLU, GeGLU)

typedef struct {
    activation_function f;
    const float *x;  // (rows, width), or if `gated` (rows, 2 width): what is activated, and up
    int64_t gated, rows, width, rows_a_chunk;
    float *y, *dx;
} activation_job;

INLINE float activation(const activation_function f, float x, const exp_range range, const int fused) {
    if (f == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    float inner = x;
    // Hendrycks and Gimpel 2016; (1 + tanh z) / 2 = 1 / (1 + exp(-2z))
    if (f == GELU_TANH) inner = multiply_add(0.044715f, x * x * x, x, fused) * (2 * 0.79788456f);
    return x / (1.0f + exp_f32(-inner, range, fused));
}

// gpt-oss: (up + 1) * gate * sigmoid(1.702 gate), gate at most 7, up within -7 and 7; NaN stays NaN
INLINE float swiglu_clamped(float gate, float up, const exp_range range, const int fused) {
    gate = gate > 7 ? 7 : gate;
    up = up > 7 ? 7 : up < -7 ? -7 : up;
    return (up + 1.0f) * (gate / (1.0f + exp_f32(-1.702f * gate, range, fused)));
}

INLINE void activate_row(const activation_function f, const float *restrict x, const float *restrict up, int64_t width,
                         float *restrict y, const int fused) {
    const exp_range range = nw_exp_range;
    if (f == SWIGLU_CLAMPED)
        for (int64_t i = 0; i < width; i++) y[i] = swiglu_clamped(x[i], up[i], range, fused);
    else if (up)
        for (int64_t i = 0; i < width; i++) y[i] = activation(f, x[i], range, fused) * up[i];
    else
        for (int64_t i = 0; i < width; i++) y[i] = activation(f, x[i], range, fused);
}

INLINE void activation_chunk(const activation_job *job, int64_t chunk, const int fused) {
    const int64_t width = job->width, stride = width * (job->gated ? 2 : 1);
    int64_t row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *x = job->x + row * stride, *up = job->gated ? x + width : NULL;
        float *y = job->y + row * width;
        if (job->f == SILU) activate_row(SILU, x, up, width, y, fused);
        else if (job->f == SWIGLU_CLAMPED) activate_row(SWIGLU_CLAMPED, x, up, width, y, fused);
        else if (job->f == GELU) activate_row(GELU, x, up, width, y, fused);
        else activate_row(GELU_TANH, x, up, width, y, fused);
    }
}

INLINE void activation_rows(void *job, int64_t chunk) { activation_chunk(job, chunk, 0); }
COMPILED_TWICE(activation)

#if NW_X86
AVX2 static void activation_fused(void *job, int64_t chunk) { activation_chunk(job, chunk, 1); }
#else
#define activation_fused activation_rows
#endif

void activate(activation_function f, int gated, const float *x, int64_t rows, int64_t width, float *y) {
    activation_job job = {f, x, gated, rows, width, rows_of_a_chunk(2 * width), y, NULL};
    pool_run(nw_level() ? activation_fused : activation_kernel(), &job, chunks_of(rows, job.rows_a_chunk));
}

// h = silu(gate) up, for rows of (gate, up) side by side.
EXPORT void nw_swiglu(const float *gates, int64_t rows, int64_t width, float *h, int threads) {
    activation_job job = {SILU, gates, 1, rows, width, rows_of_a_chunk(2 * width), h, NULL};
    if (threads) pool_run_on_torch(activation_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
    else activate(SILU, 1, gates, rows, width, h);
}

// h replaces its gradient.
INLINE void swiglu_backward_rows(void *pointer, int64_t chunk) {
    const activation_job *job = pointer;
    const exp_range range = nw_exp_range;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = min_i64(row + job->rows_a_chunk, job->rows);
    for (; row < end; row++) {
        const float *restrict gate = job->x + row * 2 * width, *restrict up = gate + width;
        float *restrict h = job->y + row * width, *restrict d = job->dx + row * 2 * width, *restrict d_up = d + width;
        for (int64_t i = 0; i < width; i++) {
            float g = gate[i], sigmoid = 1.0f / (1.0f + exp_f32(-g, range, 0)), silu = g * sigmoid, dh = h[i];
            d[i] = dh * up[i] * (sigmoid + silu * (1.0f - sigmoid));
            d_up[i] = dh * silu;
            h[i] = silu * up[i];
        }
    }
}
COMPILED_TWICE(swiglu_backward)

// `h` holds its gradient when called and h when done; `dx` becomes the gradient of `gates`.
EXPORT void nw_swiglu_backward(const float *gates, int64_t rows, int64_t width, float *h, float *dx, int threads) {
    activation_job job = {SILU, gates, 1, rows, width, rows_of_a_chunk(2 * width), h, dx};
    share_chunks(swiglu_backward_kernel(), &job, chunks_of(rows, job.rows_a_chunk), threads);
}

// ---- rotary positions, on the leading heads of rows of `heads` heads

typedef struct {
    const float *values;  // gradients of queries, keys or values: (batch, time, heads, head_width), by these strides
    int64_t heads, batch_stride, time_stride, head_stride;
} gradient;

typedef struct {
    int64_t batch, time, heads, rope_heads, head_width, rope_width;
    const float *cosine, *sine;
    int64_t table_stride;  // from one batch row's angles to the next's, 0 where all stand at the same positions
} rope_shape;

typedef struct {
    const rope_shape *shape;
    const gradient *gradients;
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
        for (const gradient *g = job->gradients; g < job->gradients + 3; g++) {
            const float *in = g->values + b * g->batch_stride + t * g->time_stride;
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
    share_chunks(rope_kernel(), &job, chunks_of(shape->batch * shape->time, job.rows_a_chunk), threads);
}

// dx (batch, time, heads, head_width) from the `gradients` of queries, keys and values.
EXPORT void nw_rope_backward(const rope_shape *shape, const gradient *gradients, float *dx, int threads) {
    rope_job job = {shape, gradients, rows_of_a_chunk(shape->heads * shape->head_width), dx};
    share_chunks(rope_backward_kernel(), &job, chunks_of(shape->batch * shape->time, job.rows_a_chunk), threads);
}
