// vector_int.h with AVX2, and with VNNI where one of its instructions does the work of two or three.
#pragma once
#include "cpu.h"
#include "matrix.h"
#define USE_AVX2
#include "vector_f32.h"

typedef __m256i vint;

INLINE vint zero(void) { return _mm256_setzero_si256(); }
INLINE vint load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void store(void *p, vint v) { _mm256_storeu_si256((__m256i *)p, v); }
// Two times 16 bytes, and the same 16 bytes twice.
INLINE vint load_two(const void *first, const void *second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first)),
                                   _mm_loadu_si128((const __m128i *)second), 1);
}
INLINE vint load_twice(const void *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }
INLINE vint bytes_of(int x) { return _mm256_set1_epi8((char)x); }
INLINE vint int16s_of(int x) { return _mm256_set1_epi16((short)x); }
INLINE vint int32s_of(int32_t x) { return _mm256_set1_epi32(x); }

INLINE vint and(vint a, vint b) { return _mm256_and_si256(a, b); }
INLINE vint or(vint a, vint b) { return _mm256_or_si256(a, b); }
INLINE vint equal_bytes(vint a, vint b) { return _mm256_cmpeq_epi8(a, b); }
// Shifts of 16-bit numbers.
#define shift_right(v, bits) _mm256_srli_epi16(v, bits)
#define shift_left(v, bits) _mm256_slli_epi16(v, bits)
// In each half: byte i is the half's byte index[i] (0 to 15) of `table`.
INLINE vint look_up(vint table, vint index) { return _mm256_shuffle_epi8(table, index); }
// Sixteen bytes as int16.
INLINE vint widen_unsigned(const void *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }
INLINE vint widen_signed(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

INLINE vint first_halves(vint a, vint b) { return _mm256_permute2x128_si256(a, b, 0x20); }
INLINE vint second_halves(vint a, vint b) { return _mm256_permute2x128_si256(a, b, 0x31); }

INLINE vint add_bytes(vint a, vint b) { return _mm256_add_epi8(a, b); }
INLINE vint subtract_int16(vint a, vint b) { return _mm256_sub_epi16(a, b); }
INLINE vint add_int16(vint a, vint b) { return _mm256_add_epi16(a, b); }
INLINE vint multiply_int16(vint a, vint b) { return _mm256_mullo_epi16(a, b); }
INLINE vint add_int32(vint a, vint b) { return _mm256_add_epi32(a, b); }
INLINE vint subtract_int32(vint a, vint b) { return _mm256_sub_epi32(a, b); }
#define shift_left_int32(v, bits) _mm256_slli_epi32(v, bits)
#define shift_right_int32(v, bits) _mm256_srli_epi32(v, bits)
#define shift_right_signed(v, bits) _mm256_srai_epi32(v, bits)
INLINE vint multiply_int32(vint a, vint b) { return _mm256_mullo_epi32(a, b); }
INLINE vint shift_right_each(vint v, const int32_t *bits) { return _mm256_srlv_epi32(v, load(bits)); }
// int32: products of int16 summed in pairs.
INLINE vint multiply_pairs(vint a, vint b) { return _mm256_madd_epi16(a, b); }

#if defined(VECTOR_VNNI) && !defined(NW_EMULATE_VNNI)
// Of AVX-VNNI or of AVX-512 VNNI: the compiler takes what the file is compiled for.
INLINE vint add_int16_products(vint sum, vint a, vint b) { return _mm256_dpwssd_epi32(sum, a, b); }
INLINE vint add_byte_products(vint sum, vint w, vint q) { return _mm256_dpbusd_epi32(sum, w, q); }
#else
INLINE vint add_int16_products(vint sum, vint a, vint b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
#if defined(VECTOR_VNNI)  // w: 0..255, so no two products are added in int16
INLINE vint add_byte_products(vint sum, vint w, vint q) {
    const vint even = _mm256_set1_epi16(255), one = _mm256_set1_epi16(1);
    sum = add_int16_products(sum, _mm256_maddubs_epi16(_mm256_and_si256(even, w), q), one);
    return add_int16_products(sum, _mm256_maddubs_epi16(_mm256_andnot_si256(even, w), q), one);
}
#else
INLINE vint add_byte_products(vint sum, vint w, vint q) {
    return add_int16_products(sum, _mm256_maddubs_epi16(w, q), _mm256_set1_epi16(1));
}
#endif
#endif

// int32 sums of w * q of some columns in each lane; w is 0..63, or signed.
INLINE vint add_dots(vint sum, vint w, vint q) { return add_byte_products(sum, w, q); }
INLINE vint add_signed_dots(vint sum, vint w, vint q) {
    return add_byte_products(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
}
// The same of two vectors whose w is 0..31 or, if signed, -12..12: they can be added before they are widened.
#if defined(VECTOR_VNNI)
INLINE vint two_dots(vint w, vint q, vint w2, vint q2) { return add_dots(add_dots(zero(), w, q), w2, q2); }
#else
INLINE vint two_dots(vint w, vint q, vint w2, vint q2) {
    return _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(w, q), _mm256_maddubs_epi16(w2, q2)),
                             _mm256_set1_epi16(1));
}
#endif
INLINE vint two_signed_dots(vint w, vint q, vint w2, vint q2) {
    return two_dots(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w), _mm256_abs_epi8(w2), _mm256_sign_epi8(q2, w2));
}

INLINE vint two_int16s(const int16_t *p) { return _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)p)); }
INLINE vint four_int16s(const int16_t *p) { return _mm256_castpd_si256(_mm256_broadcast_sd((const double *)(const void *)p)); }

// int32 sums of scale * w * q over two vectors of 32 columns; `scales`: one for each 16 columns, or, unless `of_16`, the
// same twice. Products of w up to 63 are put together before they are scaled, as multiplications are what is scarce;
// VNNI adds to the sum what it multiplies.
INLINE vint add_scaled_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales, const int of_16) {
    const vint first = _mm256_maddubs_epi16(w[0], q), second = _mm256_maddubs_epi16(w[1], q2);
    const vint both = _mm256_add_epi16(_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second));
    const vint halves = _mm256_setr_epi8(0, 1, 4, 5, 0, 1, 4, 5, 0, 1, 4, 5, 0, 1, 4, 5, 2, 3, 6, 7, 2, 3, 6, 7, 2, 3, 6, 7, 2,
                                         3, 6, 7);
    const vint by = of_16 ? _mm256_shuffle_epi8(four_int16s(scales), halves) : two_int16s(scales + 1);
    return add_int16_products(sum, both, by);
}
INLINE vint add_scaled_signed_dots(vint sum, const vint *w, vint q, vint q2, const int16_t *scales) {
    const vint first = _mm256_maddubs_epi16(_mm256_abs_epi8(w[0]), _mm256_sign_epi8(q, w[0]));
    const vint second = _mm256_maddubs_epi16(_mm256_abs_epi8(w[1]), _mm256_sign_epi8(q2, w[1]));
    return add_int16_products(add_int16_products(sum, first, two_int16s(scales)), second, two_int16s(scales + 2));
}

// In each half: sums of a's pairs of int32, then of b's.
INLINE vint add_pairs(vint a, vint b) {
    const f8 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                            _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
}
// a's halves added, then b's.
INLINE vint add_swapped(vint a, vint b) { return _mm256_add_epi32(first_halves(a, b), second_halves(a, b)); }

// In each half: the four by four int32 of four vectors, turned.
INLINE void transpose(vint *v) {
    const vint a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const vint c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi64(a, c);
    v[1] = _mm256_unpackhi_epi64(a, c);
    v[2] = _mm256_unpacklo_epi64(b, d);
    v[3] = _mm256_unpackhi_epi64(b, d);
}

INLINE f8 to_f32(vint v) { return _mm256_cvtepi32_ps(v); }
INLINE vint round_f32(f8 v) { return _mm256_cvtps_epi32(v); }  // ties to even

// The largest lane of each of eight vectors.
INLINE f8 max_of_pairs(f8 a, f8 b) {
    return _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
INLINE f8 max_of_vectors(const f8 *v) {
    const f8 a = max_of_pairs(max_of_pairs(v[0], v[1]), max_of_pairs(v[2], v[3]));
    const f8 b = max_of_pairs(max_of_pairs(v[4], v[5]), max_of_pairs(v[6], v[7]));
    return _mm256_max_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// Four vectors of int32 -127..127 as bytes.
INLINE vint pack_int8(const vint *n) {
    const vint bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Eight numbers of a row of float32, float16 or bfloat16.
INLINE f8 load_weights(const int64_t type, const void *p) {
    if (type == F32) return f8_load(p);
    if (type == F16) return f8_from_half(p);
    return f8_from_bfloat(p);
}

// The sums of four vectors' lanes: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) of each.
INLINE void sum_four(const f8 *v, float *to) {
    __m128 r[4];
    for (int i = 0; i < 4; i++) r[i] = _mm_add_ps(_mm256_castps256_ps128(v[i]), _mm256_extractf128_ps(v[i], 1));
    _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
    _mm_storeu_ps(to, _mm_add_ps(_mm_add_ps(r[0], r[2]), _mm_add_ps(r[1], r[3])));
}

// Four numbers of 2 or 4 bytes.
INLINE __m128i four_int16s_at(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    uint16_t v[4];
    memcpy(v, a, 2), memcpy(v + 1, b, 2), memcpy(v + 2, c, 2), memcpy(v + 3, d, 2);
    const __m128i two = _mm_insert_epi16(_mm_cvtsi32_si128(v[0]), v[1], 1);
    return _mm_insert_epi16(_mm_insert_epi16(two, v[2], 2), v[3], 3);
}
INLINE __m128i four_int32s_at(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    const __m128i first = _mm_unpacklo_epi32(_mm_loadu_si32(a), _mm_loadu_si32(b));
    return _mm_unpacklo_epi64(first, _mm_unpacklo_epi32(_mm_loadu_si32(c), _mm_loadu_si32(d)));
}

// The float16 at `offset` of eight rows, and the one behind it.
INLINE f8 eight_halves(const uint8_t *const *rows, int64_t offset) {
    const __m128i low = four_int16s_at(rows[0] + offset, rows[1] + offset, rows[2] + offset, rows[3] + offset);
    const __m128i high = four_int16s_at(rows[4] + offset, rows[5] + offset, rows[6] + offset, rows[7] + offset);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
}
INLINE void eight_pairs_of_halves(const uint8_t *const *rows, int64_t offset, f8 *first, f8 *second) {
    const __m128i low = four_int32s_at(rows[0] + offset, rows[1] + offset, rows[2] + offset, rows[3] + offset);
    const __m128i high = four_int32s_at(rows[4] + offset, rows[5] + offset, rows[6] + offset, rows[7] + offset);
    const __m128i apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m128i a = _mm_shuffle_epi8(low, apart), b = _mm_shuffle_epi8(high, apart);
    *first = _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b));
    *second = _mm256_cvtph_ps(_mm_unpackhi_epi64(a, b));
}

// 2^(exponent - 128) of eight rows, the exponent being the byte at `offset`.
INLINE f8 eight_powers(const uint8_t *const *rows, int64_t offset) {
    __m128i e = _mm_cvtsi32_si128(rows[0][offset]);
    e = _mm_insert_epi8(_mm_insert_epi8(_mm_insert_epi8(e, rows[1][offset], 1), rows[2][offset], 2), rows[3][offset], 3);
    e = _mm_insert_epi8(_mm_insert_epi8(_mm_insert_epi8(e, rows[4][offset], 4), rows[5][offset], 5), rows[6][offset], 6);
    const __m256i of = _mm256_cvtepu8_epi32(_mm_insert_epi8(e, rows[7][offset], 7));
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), of);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(of, _mm256_set1_epi32(1)), 23);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), of)));
}
