// Eight float32 numbers side by side, in AVX2, NEON or plain C, with the same bits from each: multiply-adds are rounded
// once, and sums over lanes have one order.
//
// A file chooses its instructions by USE_AVX2 or USE_NEON (f32_*.c, vector_*.h) and compiles the kernels (*.inc) with
// them.
#pragma once
#include <math.h>

#include "cpu.h"

#if defined(USE_AVX2)
#if defined(USE_AVX512)
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f")))
#else
#define TARGET AVX2
#endif
typedef __m256 f8;
#elif defined(USE_NEON)
#include <arm_neon.h>
#define TARGET
typedef struct {
    float32x4_t low, high;
} f8;
#else
#define TARGET
typedef struct {
    float lane[8];
} f8;
// Left to the compiler: inlined and unrolled by force, as for vectors, these loops take it long.
#undef INLINE
#define INLINE static inline
#endif
#define VECTOR INLINE TARGET

#if defined(USE_AVX2)
VECTOR f8 f8_load(const float *p) { return _mm256_loadu_ps(p); }
VECTOR void f8_store(float *p, f8 a) { _mm256_storeu_ps(p, a); }
VECTOR f8 f8_set(float a) { return _mm256_set1_ps(a); }
VECTOR f8 f8_add(f8 a, f8 b) { return _mm256_add_ps(a, b); }
VECTOR f8 f8_sub(f8 a, f8 b) { return _mm256_sub_ps(a, b); }
VECTOR f8 f8_mul(f8 a, f8 b) { return _mm256_mul_ps(a, b); }
VECTOR f8 f8_div(f8 a, f8 b) { return _mm256_div_ps(a, b); }
VECTOR f8 f8_fma(f8 a, f8 b, f8 c) { return _mm256_fmadd_ps(a, b, c); }
VECTOR f8 f8_fnma(f8 a, f8 b, f8 c) { return _mm256_fnmadd_ps(a, b, c); }
VECTOR f8 f8_ceil(f8 a) { return _mm256_ceil_ps(a); }
VECTOR f8 f8_max(f8 a, f8 b) { return _mm256_max_ps(a, b); }
VECTOR f8 f8_min(f8 a, f8 b) { return _mm256_min_ps(a, b); }
VECTOR f8 f8_zero_below(f8 x, f8 low, f8 a) { return _mm256_and_ps(a, _mm256_cmp_ps(x, low, _CMP_NLT_UQ)); }
VECTOR f8 f8_choose_below(f8 x, f8 limit, f8 a, f8 b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
VECTOR f8 f8_from_half(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
VECTOR f8 f8_from_int8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
VECTOR void f8_store_half(void *p, f8 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
VECTOR f8 f8_power_of_two(f8 shifted) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(127 << 23)));
}
VECTOR f8 f8_abs(f8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
VECTOR f8 f8_from_bfloat(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VECTOR void f8_store_bfloat(void *p, f8 a) {
    const __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const f8 quiet = _mm256_or_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    const f8 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
    const __m128i low_half = _mm256_castsi256_si128(high), high_half = _mm256_extracti128_si256(high, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(low_half, high_half));
}
VECTOR void f8_transpose(f8 *v) {
    f8 a[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        v[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        v[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        v[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        const f8 low = v[i], high = v[i + 4];
        v[i] = _mm256_permute2f128_ps(low, high, 0x20);
        v[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}
#elif defined(USE_NEON)
#define BOTH(name, operation)                                                         \
    VECTOR f8 name(f8 a, f8 b) {                                                      \
        return (f8){operation(a.low, b.low), operation(a.high, b.high)};              \
    }
BOTH(f8_add, vaddq_f32)
BOTH(f8_sub, vsubq_f32)
BOTH(f8_mul, vmulq_f32)
BOTH(f8_div, vdivq_f32)
VECTOR f8 f8_load(const float *p) { return (f8){vld1q_f32(p), vld1q_f32(p + 4)}; }
VECTOR void f8_store(float *p, f8 a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
}
VECTOR f8 f8_set(float a) { return (f8){vdupq_n_f32(a), vdupq_n_f32(a)}; }
VECTOR f8 f8_fma(f8 a, f8 b, f8 c) { return (f8){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
VECTOR f8 f8_fnma(f8 a, f8 b, f8 c) { return (f8){vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)}; }
VECTOR f8 f8_ceil(f8 a) { return (f8){vrndpq_f32(a.low), vrndpq_f32(a.high)}; }
VECTOR float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
VECTOR float32x4_t smaller(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
BOTH(f8_max, larger)
BOTH(f8_min, smaller)
VECTOR float32x4_t choose_below(float32x4_t x, float32x4_t limit, float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcltq_f32(x, limit), a, b);
}
VECTOR f8 f8_choose_below(f8 x, f8 limit, f8 a, f8 b) {
    return (f8){choose_below(x.low, limit.low, a.low, b.low), choose_below(x.high, limit.high, a.high, b.high)};
}
VECTOR f8 f8_zero_below(f8 x, f8 low, f8 a) { return f8_choose_below(x, low, f8_set(0), a); }
VECTOR f8 f8_from_half(const void *p) {
    const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8((const uint8_t *)p));
    return (f8){vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
VECTOR f8 f8_from_int8(const int8_t *p) {
    const int16x8_t eight = vmovl_s8(vld1_s8(p));
    return (f8){vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight))), vcvtq_f32_s32(vmovl_high_s16(eight))};
}
VECTOR void f8_store_half(void *p, f8 a) {
    vst1q_u8((uint8_t *)p, vreinterpretq_u8_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.low), a.high)));
}
VECTOR float32x4_t power_of_two(float32x4_t shifted) {
    const int32x4_t bits = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
    return vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(127 << 23)));
}
VECTOR f8 f8_power_of_two(f8 shifted) { return (f8){power_of_two(shifted.low), power_of_two(shifted.high)}; }
VECTOR f8 f8_abs(f8 a) { return (f8){vabsq_f32(a.low), vabsq_f32(a.high)}; }
VECTOR f8 f8_from_bfloat(const void *p) {
    const uint16x8_t h = vreinterpretq_u16_u8(vld1q_u8(p));
    return (f8){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
#else
#define EACH_LANE(expression)                                       \
    f8 result;                                                      \
    for (int i = 0; i < 8; i++) result.lane[i] = expression;        \
    return result
INLINE f8 f8_load(const float *p) { EACH_LANE(p[i]); }
INLINE void f8_store(float *p, f8 a) { memcpy(p, a.lane, sizeof a.lane); }
INLINE f8 f8_set(float a) { EACH_LANE(a); }
INLINE f8 f8_add(f8 a, f8 b) { EACH_LANE(a.lane[i] + b.lane[i]); }
INLINE f8 f8_sub(f8 a, f8 b) { EACH_LANE(a.lane[i] - b.lane[i]); }
INLINE f8 f8_mul(f8 a, f8 b) { EACH_LANE(a.lane[i] * b.lane[i]); }
INLINE f8 f8_div(f8 a, f8 b) { EACH_LANE(a.lane[i] / b.lane[i]); }
INLINE f8 f8_fma(f8 a, f8 b, f8 c) { EACH_LANE(__builtin_fmaf(a.lane[i], b.lane[i], c.lane[i])); }
INLINE f8 f8_fnma(f8 a, f8 b, f8 c) { EACH_LANE(__builtin_fmaf(-a.lane[i], b.lane[i], c.lane[i])); }
INLINE f8 f8_ceil(f8 a) { EACH_LANE(__builtin_ceilf(a.lane[i])); }
INLINE f8 f8_max(f8 a, f8 b) { EACH_LANE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
INLINE f8 f8_min(f8 a, f8 b) { EACH_LANE(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
INLINE f8 f8_choose_below(f8 x, f8 limit, f8 a, f8 b) { EACH_LANE(x.lane[i] < limit.lane[i] ? a.lane[i] : b.lane[i]); }
INLINE f8 f8_zero_below(f8 x, f8 low, f8 a) { EACH_LANE(x.lane[i] < low.lane[i] ? 0 : a.lane[i]); }
INLINE f8 f8_from_half(const void *p) { EACH_LANE(load_half((const char *)p + 2 * i)); }
INLINE f8 f8_from_int8(const int8_t *p) { EACH_LANE(p[i]); }
INLINE void f8_store_half(void *p, f8 a) {
    for (int i = 0; i < 8; i++) {
        const uint16_t half = float_to_half(a.lane[i]);
        memcpy((char *)p + 2 * i, &half, 2);
    }
}
INLINE float power_of_two(float shifted) {
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + (127u << 23);
    memcpy(&shifted, &bits, 4);
    return shifted;
}
INLINE f8 f8_power_of_two(f8 shifted) { EACH_LANE(power_of_two(shifted.lane[i])); }
INLINE f8 f8_abs(f8 a) { EACH_LANE(fabsf(a.lane[i])); }
INLINE float load_bfloat(const char *p) {
    uint16_t high[2] = {0};
    float value;
    memcpy(high + 1, p, 2);
    memcpy(&value, high, 4);
    return value;
}
INLINE f8 f8_from_bfloat(const void *p) { EACH_LANE(load_bfloat((const char *)p + 2 * i)); }
#endif
#if !defined(USE_AVX2)
VECTOR void f8_store_bfloat(void *p, f8 a) {
    float lane[8];
    f8_store(lane, a);
    for (int i = 0; i < 8; i++) {
        const uint16_t half = float_to_bfloat(lane[i]);
        memcpy((char *)p + 2 * i, &half, 2);
    }
}
VECTOR void f8_transpose(f8 *v) {
    float rows[8][8], column[8];
    for (int i = 0; i < 8; i++) f8_store(rows[i], v[i]);
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++) column[j] = rows[j][i];
        v[i] = f8_load(column);
    }
}
#endif
// What the names above do not say: f8_fnma is c - a * b; f8_max and f8_min give b where either is NaN; f8_zero_below gives 0 where x < low
// and a elsewhere, f8_choose_below a where x < limit and b elsewhere; f8_power_of_two takes n + MAGIC and gives 2^n;
// f8_transpose exchanges rows and columns of eight vectors; conversions to 16 bits round to nearest even.

VECTOR f8 f8_load_some(const float *p, int64_t count) {  // zeros behind fewer than eight
    float padded[8] = {0};
    if (count >= 8) return f8_load(p);
    memcpy(padded, p, (size_t)count * sizeof(float));
    return f8_load(padded);
}

VECTOR void f8_store_some(float *p, f8 a, int64_t count) {
    float eight[8];
    if (count >= 8) {
        f8_store(p, a);
        return;
    }
    f8_store(eight, a);
    memcpy(p, eight, (size_t)count * sizeof(float));
}

VECTOR float f8_sum(f8 a) {
    float lane[8];
    f8_store(lane, a);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

VECTOR float f8_largest(f8 a) {
    float lane[8], largest;
    f8_store(lane, a);
    largest = lane[0];
    for (int i = 1; i < 8; i++) largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}

#define MAGIC 12582912.0f  // 1.5 * 2^23: adding it rounds to a whole number, which the lowest bits then hold

// exp(x) within 2 units in the last place: Cephes' expf. 0 below -87, exp(88) above 88; NaN stays NaN. ln 2 is taken in
// two terms.
#define DEFINE_EXP(v)                                                                                            \
    VECTOR v v##_exp(v x) {                                                                                      \
        const v bounded = v##_min(v##_set(88.0f), x);                                                            \
        const v shifted = v##_fma(bounded, v##_set(1.44269504f), v##_set(MAGIC));                                \
        const v n = v##_sub(shifted, v##_set(MAGIC));                                                            \
        v r = v##_fma(n, v##_set(-0.693359375f), bounded);                                                       \
        r = v##_fma(n, v##_set(2.12194440e-4f), r);                                                              \
        v p = v##_fma(v##_set(1.9875691500e-4f), r, v##_set(1.3981999507e-3f));                                  \
        p = v##_fma(p, r, v##_set(8.3334519073e-3f));                                                            \
        p = v##_fma(p, r, v##_set(4.1665795894e-2f));                                                            \
        p = v##_fma(p, r, v##_set(1.6666665459e-1f));                                                            \
        p = v##_fma(p, r, v##_set(5.0000001201e-1f));                                                            \
        p = v##_fma(p, v##_mul(r, r), v##_add(r, v##_set(1.0f)));                                                \
        return v##_zero_below(x, v##_set(-87.0f), v##_mul(p, v##_power_of_two(shifted)));                        \
    }
DEFINE_EXP(f8)

// tanh(x) within 3 units in the last place: 1 - 2 / (exp(2x) + 1), and near zero, where that cancels, Cephes' tanhf.
VECTOR f8 f8_tanh(f8 x) {
    const f8 one = f8_set(1.0f), square = f8_mul(x, x);
    const f8 far = f8_sub(one, f8_div(f8_set(2.0f), f8_add(f8_exp(f8_add(x, x)), one)));
    f8 p = f8_fma(f8_set(-5.70498872745e-3f), square, f8_set(2.06390887954e-2f));
    p = f8_fma(p, square, f8_set(-5.37397155531e-2f));
    p = f8_fma(p, square, f8_set(1.33314422036e-1f));
    p = f8_fma(p, square, f8_set(-3.33332819422e-1f));
    const f8 near = f8_fma(f8_mul(p, square), x, x);
    return f8_choose_below(square, f8_set(0.625f * 0.625f), near, far);
}

// ---- vectors as wide as the processor's

#if defined(USE_AVX512)
#define LANES 16
typedef __m512 fw;
VECTOR fw fw_load(const float *p) { return _mm512_loadu_ps(p); }
VECTOR void fw_store(float *p, fw a) { _mm512_storeu_ps(p, a); }
VECTOR fw fw_set(float a) { return _mm512_set1_ps(a); }
VECTOR fw fw_add(fw a, fw b) { return _mm512_add_ps(a, b); }
VECTOR fw fw_sub(fw a, fw b) { return _mm512_sub_ps(a, b); }
VECTOR fw fw_mul(fw a, fw b) { return _mm512_mul_ps(a, b); }
VECTOR fw fw_fma(fw a, fw b, fw c) { return _mm512_fmadd_ps(a, b, c); }
VECTOR fw fw_max(fw a, fw b) { return _mm512_max_ps(a, b); }
VECTOR fw fw_min(fw a, fw b) { return _mm512_min_ps(a, b); }
VECTOR fw fw_div(fw a, fw b) { return _mm512_div_ps(a, b); }
VECTOR fw fw_zero_below(fw x, fw low, fw a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), a);
}
VECTOR fw fw_choose_below(fw x, fw limit, fw a, fw b) {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), a);
}
VECTOR fw fw_power_of_two(fw shifted) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(127 << 23)));
}
VECTOR fw fw_from_bfloat(const void *p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
VECTOR void fw_store_bfloat(void *p, fw a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}
DEFINE_EXP(fw)
#else
#define LANES 8
typedef f8 fw;
#define fw_load f8_load
#define fw_store f8_store
#define fw_set f8_set
#define fw_add f8_add
#define fw_sub f8_sub
#define fw_mul f8_mul
#define fw_fma f8_fma
#define fw_max f8_max
#define fw_choose_below f8_choose_below
#define fw_exp f8_exp
#define fw_div f8_div
#define fw_from_bfloat f8_from_bfloat
#define fw_store_bfloat f8_store_bfloat
#endif
