// vector_int.h in plain C.
#pragma once
#include "cpu.h"
#include "quant_types.h"
#include "vector_f32.h"

typedef union {
    int8_t b[32];
    uint8_t u[32];
    int16_t h[16];
    int32_t w[8];
} vint;

#define EACH(count, expression)          \
    vint y;                              \
    for (int i = 0; i < (count); i++) expression; \
    return y

INLINE vint zero(void) { return (vint){{0}}; }
INLINE vint load(const void *p) {
    vint y;
    memcpy(&y, p, 32);
    return y;
}
INLINE void store(void *p, vint v) { memcpy(p, &v, 32); }
INLINE vint load_two(const void *first, const void *second) {
    vint y;
    memcpy(y.b, first, 16);
    memcpy(y.b + 16, second, 16);
    return y;
}
INLINE vint load_twice(const void *p) { return load_two(p, p); }
INLINE vint bytes_of(int x) { EACH(32, y.b[i] = (int8_t)x); }
INLINE vint int16s_of(int x) { EACH(16, y.h[i] = (int16_t)x); }
INLINE vint int32s_of(int32_t x) { EACH(8, y.w[i] = x); }

INLINE vint and(vint a, vint b) { EACH(8, y.w[i] = a.w[i] & b.w[i]); }
INLINE vint or(vint a, vint b) { EACH(8, y.w[i] = a.w[i] | b.w[i]); }
INLINE vint equal_bytes(vint a, vint b) { EACH(32, y.b[i] = a.b[i] == b.b[i] ? -1 : 0); }
INLINE vint shift_right(vint v, int bits) { EACH(16, y.h[i] = (int16_t)((uint16_t)v.h[i] >> bits)); }
INLINE vint shift_left(vint v, int bits) { EACH(16, y.h[i] = (int16_t)((uint16_t)v.h[i] << bits)); }
INLINE vint look_up(vint table, vint index) { EACH(32, y.b[i] = table.b[i / 16 * 16 + (index.b[i] & 15)]); }
INLINE vint widen_unsigned(const void *p) { EACH(16, y.h[i] = ((const uint8_t *)p)[i]); }
INLINE vint widen_signed(const void *p) { EACH(16, y.h[i] = ((const int8_t *)p)[i]); }
INLINE vint first_halves(vint a, vint b) { return load_two(a.b, b.b); }
INLINE vint second_halves(vint a, vint b) { return load_two(a.b + 16, b.b + 16); }

INLINE vint subtract_int16(vint a, vint b) { EACH(16, y.h[i] = (int16_t)(a.h[i] - b.h[i])); }
INLINE vint multiply_int16(vint a, vint b) { EACH(16, y.h[i] = (int16_t)(a.h[i] * b.h[i])); }
INLINE vint add_int32(vint a, vint b) { EACH(8, y.w[i] = (int32_t)((uint32_t)a.w[i] + (uint32_t)b.w[i])); }
INLINE vint subtract_int32(vint a, vint b) { EACH(8, y.w[i] = (int32_t)((uint32_t)a.w[i] - (uint32_t)b.w[i])); }
INLINE vint shift_left_int32(vint v, int bits) { EACH(8, y.w[i] = (int32_t)((uint32_t)v.w[i] << bits)); }
INLINE vint shift_right_each(vint v, const int32_t *bits) { EACH(8, y.w[i] = (int32_t)((uint32_t)v.w[i] >> bits[i])); }
INLINE vint multiply_pairs(vint a, vint b) {
    EACH(8, y.w[i] = a.h[2 * i] * b.h[2 * i] + a.h[2 * i + 1] * b.h[2 * i + 1]);
}

// Four products in each lane; w is unsigned or signed as its numbers are.
INLINE vint add_signed_dots(vint sum, vint w, vint q) {
    EACH(8, y.w[i] = sum.w[i] + w.b[4 * i] * q.b[4 * i] + w.b[4 * i + 1] * q.b[4 * i + 1] +
                     w.b[4 * i + 2] * q.b[4 * i + 2] + w.b[4 * i + 3] * q.b[4 * i + 3]);
}
INLINE vint add_dots(vint sum, vint w, vint q) { return add_signed_dots(sum, w, q); }
INLINE vint two_signed_dots(vint w, vint q, vint w2, vint q2) {
    return add_signed_dots(add_signed_dots(zero(), w, q), w2, q2);
}
INLINE vint two_dots(vint w, vint q, vint w2, vint q2) { return two_signed_dots(w, q, w2, q2); }

INLINE vint add_scaled_signed_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales) {
    const vint first = add_signed_dots(zero(), w[0], q), second = add_signed_dots(zero(), w[1], q2);
    EACH(8, y.w[i] = (int32_t)((uint32_t)sum.w[i] + (uint32_t)(first.w[i] * scales[i / 4]) +
                               (uint32_t)(second.w[i] * scales[2 + i / 4])));
}
INLINE vint add_scaled_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales, const int of_16) {
    return add_scaled_signed_dots(sum, w, q, q2, scales);
}

INLINE vint add_pairs(vint a, vint b) {
    EACH(8, y.w[i] = i % 4 < 2 ? a.w[i / 4 * 4 + 2 * (i % 2)] + a.w[i / 4 * 4 + 2 * (i % 2) + 1]
                               : b.w[i / 4 * 4 + 2 * (i % 2)] + b.w[i / 4 * 4 + 2 * (i % 2) + 1]);
}
INLINE vint add_swapped(vint a, vint b) { return add_int32(first_halves(a, b), second_halves(a, b)); }

INLINE f8 to_f32(vint v) { EACH_LANE((float)v.w[i]); }
INLINE vint round_f32(f8 v) { EACH(8, y.w[i] = (int32_t)__builtin_rintf(v.lane[i])); }
INLINE f8 max_of_vectors(const f8 *v) {
    f8 y = f8_set(0);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) y.lane[i] = v[i].lane[j] > y.lane[i] ? v[i].lane[j] : y.lane[i];
    return y;
}

INLINE vint pack_int8(const vint *n) { EACH(32, y.b[i] = (int8_t)n[i / 8].w[i % 8]); }

INLINE f8 load_weights(const int64_t type, const void *p) {
    if (type == F32) return f8_load(p);
    return type == BF16 ? f8_from_bfloat(p) : f8_from_half(p);
}

INLINE void sum_four(const f8 *v, float *to) {
    for (int r = 0; r < 4; r++) {
        const float *s = v[r].lane;
        to[r] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    }
}

INLINE f8 eight_halves(const uint8_t *const *rows, int64_t offset) { EACH_LANE(load_half(rows[i] + offset)); }
INLINE void eight_pairs_of_halves(const uint8_t *const *rows, int64_t offset, f8 *first, f8 *second) {
    *first = eight_halves(rows, offset);
    *second = eight_halves(rows, offset + 2);
}
INLINE f8 eight_powers(const uint8_t *const *rows, int64_t offset) { EACH_LANE(half_power(rows[i][offset])); }
