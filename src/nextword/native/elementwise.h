// Norms and activation functions on rows of float32, and the vector helpers they share with attention.
#pragma once
#include "cpu.h"

typedef struct {
    const float *weight, *bias;  // (width,); bias may be NULL, weight NULL means no norm at all
} norm;

typedef enum { SILU = 0, GELU = 1, GELU_TANH = 2 } activation_function;

// y = x / sqrt(mean(x^2) + eps) * weight, or with `rms` 0 the LayerNorm; rows of `width`. y may be x.
void normalise(const norm *n, int rms, float eps, const float *x, int64_t rows, int64_t width, float *y);

// The same in place for the first `parts` times `width` numbers of rows that are `stride` numbers apart.
void normalise_parts(const norm *n, int rms, float eps, float *x, int64_t rows, int64_t stride, int64_t parts,
                     int64_t width);

// y = f(x), or with `gated` f(x[:, :width]) * x[:, width:]; x (rows, width or 2 width), y (rows, width) elsewhere.
void activate(activation_function f, int gated, const float *x, int64_t rows, int64_t width, float *y);

#if NW_X86
INLINE AVX2 float add_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// exp, Cephes' expf: within 2 units in the last place between -87 and 88, and no further; NaN stays NaN.
INLINE AVX2 __m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));  // NaN is the second operand
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}
#endif
