// vector_int.h with NEON: two vectors of 16 bytes.
#pragma once
#include "cpu.h"
#include "quant_types.h"
#define USE_NEON
#include "vector_f32.h"

typedef struct {
    int8x16_t low, high;
} vint;

#define S16(v) vreinterpretq_s16_s8(v)
#define S32(v) vreinterpretq_s32_s8(v)
#define U8(v) vreinterpretq_u8_s8(v)
#define U16(v) vreinterpretq_u16_s8(v)
#define OF_S16(v) vreinterpretq_s8_s16(v)
#define OF_S32(v) vreinterpretq_s8_s32(v)
#define OF_U8(v) vreinterpretq_s8_u8(v)
#define OF_U16(v) vreinterpretq_s8_u16(v)
#define OF_U32(v) vreinterpretq_s8_u32(v)

// An operation on each half, of numbers of one type.
#define ON_HALVES(name, to, of, operation) \
    INLINE vint name(vint a, vint b) { return (vint){of(operation(to(a.low), to(b.low))), of(operation(to(a.high), to(b.high)))}; }
#define SAME(v) (v)

INLINE vint zero(void) { return (vint){vdupq_n_s8(0), vdupq_n_s8(0)}; }
INLINE vint load_two(const void *first, const void *second) { return (vint){vld1q_s8(first), vld1q_s8(second)}; }
INLINE vint load(const void *p) { return load_two(p, (const int8_t *)p + 16); }
INLINE vint load_twice(const void *p) { return load_two(p, p); }
INLINE void store(void *p, vint v) {
    vst1q_s8(p, v.low);
    vst1q_s8((int8_t *)p + 16, v.high);
}
INLINE vint bytes_of(int x) { return (vint){vdupq_n_s8((int8_t)x), vdupq_n_s8((int8_t)x)}; }
INLINE vint int16s_of(int x) { return (vint){OF_S16(vdupq_n_s16((int16_t)x)), OF_S16(vdupq_n_s16((int16_t)x))}; }
INLINE vint int32s_of(int32_t x) { return (vint){OF_S32(vdupq_n_s32(x)), OF_S32(vdupq_n_s32(x))}; }

ON_HALVES(and, SAME, SAME, vandq_s8)
ON_HALVES(or, SAME, SAME, vorrq_s8)
ON_HALVES(equal_bytes, SAME, OF_U8, vceqq_s8)
ON_HALVES(add_bytes, SAME, SAME, vaddq_s8)
ON_HALVES(add_int16, S16, OF_S16, vaddq_s16)
ON_HALVES(subtract_int16, S16, OF_S16, vsubq_s16)
ON_HALVES(multiply_int16, S16, OF_S16, vmulq_s16)
ON_HALVES(add_int32, S32, OF_S32, vaddq_s32)
ON_HALVES(subtract_int32, S32, OF_S32, vsubq_s32)
ON_HALVES(multiply_int32, S32, OF_S32, vmulq_s32)
INLINE vint look_up(vint table, vint index) {
    return (vint){vqtbl1q_s8(table.low, U8(index.low)), vqtbl1q_s8(table.high, U8(index.high))};
}

INLINE vint shift_right(vint v, int bits) {
    const int16x8_t by = vdupq_n_s16((int16_t)-bits);
    return (vint){OF_U16(vshlq_u16(U16(v.low), by)), OF_U16(vshlq_u16(U16(v.high), by))};
}
INLINE vint shift_left(vint v, int bits) { return shift_right(v, -bits); }
// Of int32, to the left by each lane's number or, where that is negative, to the right.
INLINE vint shift_each(vint v, int32x4_t low, int32x4_t high) {
    return (vint){OF_U32(vshlq_u32(vreinterpretq_u32_s8(v.low), low)), OF_U32(vshlq_u32(vreinterpretq_u32_s8(v.high), high))};
}
INLINE vint shift_left_int32(vint v, int bits) { return shift_each(v, vdupq_n_s32(bits), vdupq_n_s32(bits)); }
INLINE vint shift_right_int32(vint v, int bits) { return shift_left_int32(v, -bits); }
INLINE vint shift_right_signed(vint v, int bits) {
    const int32x4_t by = vdupq_n_s32(-bits);
    return (vint){OF_S32(vshlq_s32(S32(v.low), by)), OF_S32(vshlq_s32(S32(v.high), by))};
}
INLINE vint shift_right_each(vint v, const int32_t *bits) {
    return shift_each(v, vnegq_s32(vld1q_s32(bits)), vnegq_s32(vld1q_s32(bits + 4)));
}

INLINE vint widen_unsigned(const void *p) {
    const uint8x16_t v = vld1q_u8(p);
    return (vint){OF_U16(vmovl_u8(vget_low_u8(v))), OF_U16(vmovl_u8(vget_high_u8(v)))};
}
INLINE vint widen_signed(const void *p) {
    const int8x16_t v = vld1q_s8(p);
    return (vint){OF_S16(vmovl_s8(vget_low_s8(v))), OF_S16(vmovl_s8(vget_high_s8(v)))};
}
INLINE vint first_halves(vint a, vint b) { return (vint){a.low, b.low}; }
INLINE vint second_halves(vint a, vint b) { return (vint){a.high, b.high}; }

INLINE int8x16_t pairs_of_half(int8x16_t a, int8x16_t b) {
    const int32x4_t low = vmull_s16(vget_low_s16(S16(a)), vget_low_s16(S16(b)));
    return OF_S32(vpaddq_s32(low, vmull_high_s16(S16(a), S16(b))));
}
ON_HALVES(multiply_pairs, SAME, SAME, pairs_of_half)
INLINE vint add_int16_products(vint sum, vint a, vint b) { return add_int32(sum, multiply_pairs(a, b)); }

// Four products in each lane. Integers without a sign are below 128.
#if defined(__ARM_FEATURE_DOTPROD)
INLINE int32x4_t dots_of_half(int32x4_t sum, int8x16_t w, int8x16_t q) { return vdotq_s32(sum, w, q); }
#else
INLINE int32x4_t dots_of_half(int32x4_t sum, int8x16_t w, int8x16_t q) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(q)), high = vmull_high_s8(w, q);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
#endif
INLINE vint add_signed_dots(vint sum, vint w, vint q) {
    return (vint){OF_S32(dots_of_half(S32(sum.low), w.low, q.low)), OF_S32(dots_of_half(S32(sum.high), w.high, q.high))};
}
INLINE vint add_dots(vint sum, vint w, vint q) { return add_signed_dots(sum, w, q); }
INLINE vint two_signed_dots(vint w, vint q, vint w2, vint q2) {
    return add_signed_dots(add_signed_dots(zero(), w, q), w2, q2);
}
INLINE vint two_dots(vint w, vint q, vint w2, vint q2) { return two_signed_dots(w, q, w2, q2); }

INLINE vint add_scaled(vint sum, vint dots, const int16_t *scales) {
    return (vint){OF_S32(vmlaq_n_s32(S32(sum.low), S32(dots.low), scales[0])),
                  OF_S32(vmlaq_n_s32(S32(sum.high), S32(dots.high), scales[1]))};
}
INLINE vint add_scaled_signed_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales) {
    sum = add_scaled(sum, add_signed_dots(zero(), w[0], q), scales);
    return add_scaled(sum, add_signed_dots(zero(), w[1], q2), scales + 2);
}
INLINE vint add_scaled_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales, const int of_16) {
    (void)of_16;
    return add_scaled_signed_dots(sum, w, q, q2, scales);
}

ON_HALVES(add_pairs, S32, OF_S32, vpaddq_s32)
INLINE vint add_swapped(vint a, vint b) { return add_int32(first_halves(a, b), second_halves(a, b)); }

INLINE void transpose_half(int8x16_t *a, int8x16_t *b, int8x16_t *c, int8x16_t *d) {
    const int32x4x2_t x = vzipq_s32(S32(*a), S32(*c)), y = vzipq_s32(S32(*b), S32(*d));
    const int32x4x2_t first = vzipq_s32(x.val[0], y.val[0]), second = vzipq_s32(x.val[1], y.val[1]);
    *a = OF_S32(first.val[0]);
    *b = OF_S32(first.val[1]);
    *c = OF_S32(second.val[0]);
    *d = OF_S32(second.val[1]);
}
INLINE void transpose(vint *v) {
    transpose_half(&v[0].low, &v[1].low, &v[2].low, &v[3].low);
    transpose_half(&v[0].high, &v[1].high, &v[2].high, &v[3].high);
}

INLINE f8 to_f32(vint v) { return (f8){vcvtq_f32_s32(S32(v.low)), vcvtq_f32_s32(S32(v.high))}; }
INLINE vint round_f32(f8 v) { return (vint){OF_S32(vcvtnq_s32_f32(v.low)), OF_S32(vcvtnq_s32_f32(v.high))}; }
INLINE f8 max_of_vectors(const f8 *v) {
    float largest[8];
    for (int i = 0; i < 8; i++) largest[i] = vmaxvq_f32(vmaxq_f32(v[i].low, v[i].high));
    return f8_load(largest);
}

INLINE int8x16_t narrow(vint a, vint b) {
    const int16x8_t first = vcombine_s16(vmovn_s32(S32(a.low)), vmovn_s32(S32(a.high)));
    const int16x8_t second = vcombine_s16(vmovn_s32(S32(b.low)), vmovn_s32(S32(b.high)));
    return vcombine_s8(vmovn_s16(first), vmovn_s16(second));
}
INLINE vint pack_int8(const vint *n) { return (vint){narrow(n[0], n[1]), narrow(n[2], n[3])}; }

INLINE f8 load_weights(const int64_t type, const void *p) {
    if (type == F32) return (f8){vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p + 16))};
    if (type == F16) return f8_from_half(p);
    return f8_from_bfloat(p);
}

INLINE void sum_four(const f8 *v, float *to) {
    for (int r = 0; r < 4; r++) {
        const float32x4_t s = vaddq_f32(v[r].low, v[r].high);
        to[r] = (vgetq_lane_f32(s, 0) + vgetq_lane_f32(s, 2)) + (vgetq_lane_f32(s, 1) + vgetq_lane_f32(s, 3));
    }
}

INLINE f8 eight_halves(const uint8_t *const *rows, int64_t offset) {
    uint16_t h[8];
    for (int r = 0; r < 8; r++) memcpy(h + r, rows[r] + offset, 2);
    return f8_from_half(h);
}
INLINE void eight_pairs_of_halves(const uint8_t *const *rows, int64_t offset, f8 *first, f8 *second) {
    *first = eight_halves(rows, offset);
    *second = eight_halves(rows, offset + 2);
}
INLINE f8 eight_powers(const uint8_t *const *rows, int64_t offset) {
    float powers[8];
    for (int r = 0; r < 8; r++) powers[r] = half_power(rows[r][offset]);
    return f8_load(powers);
}
