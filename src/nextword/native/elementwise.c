#include "elementwise.h"

#include <math.h>

#include "pool.h"

#define CHUNK_NUMBERS 8192  // some microseconds; fewer are not worth sharing out

// ---- norms

typedef struct {
    const norm *n;
    const float *x;
    int64_t rows, stride, parts, width, rows_a_chunk;  // `parts` times `width` of a row's `stride` numbers
    int rms;
    float eps, *y;
} norm_job;

// Sixteen sums side by side: the compiler makes vectors of them, and rounding stays small.
static float sum_of_squares(const float *x, int64_t width, float middle) {
    float part[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) part[j] += (x[i + j] - middle) * (x[i + j] - middle);
    for (; i < width; i++) sum += (x[i] - middle) * (x[i] - middle);
    for (int j = 0; j < 16; j++) sum += part[j];
    return sum;
}

static float mean(const float *x, int64_t width) {
    float part[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) part[j] += x[i + j];
    for (; i < width; i++) sum += x[i];
    for (int j = 0; j < 16; j++) sum += part[j];
    return sum / (float)width;
}

static void norm_row(const norm_job *job, const float *x, float *y) {
    const float *weight = job->n->weight, *bias = job->n->bias;
    const int64_t width = job->width;
    const float middle = job->rms ? 0 : mean(x, width);
    const float factor = 1.0f / sqrtf(sum_of_squares(x, width, middle) / (float)width + job->eps);
    for (int64_t i = 0; i < width; i++) y[i] = (x[i] - middle) * factor * weight[i];
    for (int64_t i = 0; bias && i < width; i++) y[i] += bias[i];
}

static void norm_chunk(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    int64_t row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    for (; row < end && row < job->rows; row++)
        for (int64_t part = 0; part < job->parts; part++) {
            const int64_t from = row * job->stride + part * job->width;
            norm_row(job, job->x + from, job->y + from);
        }
}

static void share_norms(norm_job *job) {
    job->rows_a_chunk = CHUNK_NUMBERS / (job->parts * job->width) + 1;
    pool_run(norm_chunk, job, (job->rows + job->rows_a_chunk - 1) / job->rows_a_chunk);
}

void normalise(const norm *n, int rms, float eps, const float *x, int64_t rows, int64_t width, float *y) {
    share_norms(&(norm_job){n, x, rows, width, 1, width, 0, rms, eps, y});
}

void normalise_parts(const norm *n, int rms, float eps, float *x, int64_t rows, int64_t stride, int64_t parts,
                     int64_t width) {
    share_norms(&(norm_job){n, x, rows, stride, parts, width, 0, rms, eps, x});
}

EXPORT void nw_rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y) {
    norm n = {weight, NULL};
    normalise(&n, 1, eps, x, rows, width, y);
}

// ---- activation functions

typedef struct {
    activation_function f;
    int gated;
    const float *x;
    int64_t rows, width, rows_a_chunk;
    float *y;
} activation_job;

static float apply(activation_function f, float x) {
    if (f == SILU) return x / (1.0f + expf(-x));
    if (f == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));  // Hendrycks and Gimpel 2016
}

#if NW_X86
// The vectors of a row that are whole; returns how many numbers that were. tanh(z) = 1 - 2 / (exp(2z) + 1).
AVX2 static int64_t activate_avx2(activation_function f, const float *x, const float *up, int64_t width, float *y) {
    const __m256 one = _mm256_set1_ps(1.0f);
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i), inner = v;
        if (f == GELU_TANH) {
            __m256 cubed = _mm256_mul_ps(_mm256_mul_ps(v, v), v);
            inner = _mm256_fmadd_ps(_mm256_set1_ps(0.044715f), cubed, v);
            inner = _mm256_mul_ps(inner, _mm256_set1_ps(2 * 0.79788456f));
        }
        // both are x / (1 + exp(-inner)), since (1 + tanh z) / 2 = 1 / (1 + exp(-2z))
        __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), inner));
        __m256 result = _mm256_div_ps(v, _mm256_add_ps(one, e));
        _mm256_storeu_ps(y + i, up ? _mm256_mul_ps(result, _mm256_loadu_ps(up + i)) : result);
    }
    return i;
}
#endif

static void activation_chunk(void *pointer, int64_t chunk) {
    const activation_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    for (; row < end && row < job->rows; row++) {
        const float *x = job->x + row * width * (job->gated ? 2 : 1), *up = job->gated ? x + width : NULL;
        float *y = job->y + row * width;
        int64_t i = 0;
#if NW_X86
        if (nw_level() && job->f != GELU) i = activate_avx2(job->f, x, up, width, y);
#endif
        for (; i < width; i++) y[i] = apply(job->f, x[i]) * (up ? up[i] : 1.0f);
    }
}

void activate(activation_function f, int gated, const float *x, int64_t rows, int64_t width, float *y) {
    activation_job job = {f, gated, x, rows, width, CHUNK_NUMBERS / (2 * width) + 1, y};
    pool_run(activation_chunk, &job, (rows + job.rows_a_chunk - 1) / job.rows_a_chunk);
}

EXPORT void nw_silu_product(const float *x, int64_t rows, int64_t width, float *y) { activate(SILU, 1, x, rows, width, y); }
