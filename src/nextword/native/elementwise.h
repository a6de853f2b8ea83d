// Norms, activation functions and rotary positions on rows of float32: those of inference (layer_ops.c), and what the
// loops of training share (elementwise.c), which run on torch's threads.
#pragma once
#include <stdatomic.h>

#include "cpu.h"
#include "pool.h"

typedef struct {
    const float *weight, *bias;  // (width,); bias may be NULL, weight NULL means no norm at all
    int64_t rms;                 // RMSNorm; 0: LayerNorm
    float eps;
} norm;

typedef enum { SILU = 0, GELU = 1, GELU_TANH = 2, SWIGLU_CLAMPED = 3 } activation_function;

// A tensor (batch, time, heads, width) whose rows of `width` are contiguous; strides in numbers.
typedef struct {
    void *values;
    int64_t bfloat16;  // 0: float32
    int64_t heads, batch_stride, time_stride, head_stride;
} head_rows;

// y = x / sqrt(mean(x^2) + eps) * weight, or LayerNorm; rows of `width`. y may be x.
void normalize(const norm *n, const float *x, int64_t rows, int64_t width, float *y);

// The same in place for each of the first `heads` times `width` numbers of rows that are `stride` numbers apart.
void normalize_heads(const norm *n, float *x, int64_t rows, int64_t stride, int64_t heads, int64_t width);

// y = f(x), or with `gated` f(x[:, :width]) * x[:, width:], which SWIGLU_CLAMPED clamps as gpt-oss does;
// x (rows, width or 2 width), y (rows, width) elsewhere.
void activate(activation_function f, int gated, const float *x, int64_t rows, int64_t width, float *y);

// A loop over rows compiled for float32 and for bfloat16, and for AVX2 and for any processor; the compiler makes vectors
// of it. Without contraction all processors give the same bits.
#if NW_X86
#define COMPILED(name)                                                                                      \
    AVX2 static void name##_avx2(void *job, int64_t chunk) { name##_rows(job, chunk, 0); }                  \
    AVX2 static void name##_bfloat_avx2(void *job, int64_t chunk) { name##_rows(job, chunk, 1); }           \
    static void name##_portable(void *job, int64_t chunk) { name##_rows(job, chunk, 0); }                   \
    static void name##_bfloat_portable(void *job, int64_t chunk) { name##_rows(job, chunk, 1); }            \
    static chunk_function name##_kernel(int bfloat16) {                                                     \
        if (nw_level()) return bfloat16 ? name##_bfloat_avx2 : name##_avx2;                                 \
        return bfloat16 ? name##_bfloat_portable : name##_portable;                                         \
    }
#else
#define COMPILED(name)                                                                                      \
    static void name##_float(void *job, int64_t chunk) { name##_rows(job, chunk, 0); }                      \
    static void name##_bfloat(void *job, int64_t chunk) { name##_rows(job, chunk, 1); }                     \
    static chunk_function name##_kernel(int bfloat16) { return bfloat16 ? name##_bfloat : name##_float; }
#endif

// Numbers `start` on of a tensor of either type.
INLINE void *numbers_from(const void *x, int64_t start, const int bfloat16) {
    return (char *)x + start * (bfloat16 ? 2 : 4);
}
INLINE float get(const void *x, int64_t i, const int bfloat16) {
    return bfloat16 ? bfloat_to_float(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}
INLINE void put(void *x, int64_t i, float value, const int bfloat16) {
    if (bfloat16) ((uint16_t *)x)[i] = float_to_bfloat(value);
    else ((float *)x)[i] = value;
}

static inline int64_t chunks_of(int64_t rows, int64_t rows_a_chunk) { return (rows + rows_a_chunk - 1) / rows_a_chunk; }

INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// The bounds of exp_f32 are variables. Of constants the compiler works out what follows from them as a case of its own,
// in which x / (1 + exp(88)) is a subnormal number, and computes that for every x: four times slower.
typedef struct {
    float low, high;
} exp_range;

extern exp_range nw_exp_range;  // -87 to 88

// exp, Cephes' expf: within 2 units in the last place between the bounds, and no further; NaN stays NaN.
INLINE float exp_f32(float x, const exp_range range) {
    x = x < range.low ? range.low : x;
    x = x > range.high ? range.high : x;
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest integer: 1.5 * 2^23 has no fraction
    const float r = n * 2.12194440e-4f + (x - n * 0.693359375f);    // ln 2 in two terms
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = (int32_t)((uint32_t)((int32_t)n + 127) << 23)};
    return p * power.value;
}

// Rotary positions of a head in place: (a, b) -> (a cos + b sin, b cos' + a sin'), signs being in the table (see
// models/rotary.py).
INLINE void rope_head(const float *cosine, const float *sine, int64_t half, float *x) {
    float *restrict low = x, *restrict high = x + half;
    for (int64_t i = 0; i < half; i++) {
        const float a = low[i], b = high[i];
        low[i] = a * cosine[i] + b * sine[i];
        high[i] = b * cosine[half + i] + a * sine[half + i];
    }
}

// ---- training: passes over rows of float32 or bfloat16 (training_rows.inc)

typedef struct {
    const void *x;  // (rows, 2 width): gate and up
    int64_t bfloat16, rows, width, rows_a_chunk;
    void *y, *dx;
} swiglu_job;

typedef struct {
    int64_t batch, time, heads, rope_heads, head_width, rope_width;
    const float *cosine, *sine;
    int64_t table_stride;  // from one batch row's angles to the next's, 0 where all stand at the same positions
} rope_shape;

typedef struct {
    const rope_shape *shape;
    const head_rows *gradients;
    int64_t bfloat16, rows_a_chunk;
    void *x;
} rope_job;

// -ln softmax(logits)[target] of each row, 0 where the target is `ignored`; with `gradient`, logits become theirs.
typedef struct {
    void *logits;
    int64_t bfloat16;
    const int64_t *targets;
    int64_t rows, width, rows_a_chunk, ignored, gradient;
    float *losses;
    _Atomic int failed;  // memory was short
} entropy_job;
