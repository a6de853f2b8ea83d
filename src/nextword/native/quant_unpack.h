// Blocks of GGUF's types into vectors of small integers, for every kernel of quantized matrices.
//
// `type` is a constant wherever these are used, so that every type is compiled by itself.
#pragma once
#include "quant_types.h"
#include "vector_int.h"

INLINE int has_minima(const int64_t type) {
    return type == Q4_1 || type == Q5_1 || type == Q2_K || type == Q4_K || type == Q5_K;
}

// Whether integers are signed; else they are 0..63 and stand for w + offset_of(type).
INLINE int is_signed(const int64_t type) { return type == Q8_0 || type == IQ4_NL || type == MXFP4 || type == IQ4_XS; }
INLINE int offset_of(const int64_t type) {
    return type == Q4_0 ? 8 : type == Q5_0 ? 16 : type == Q3_K ? 4 : type == Q6_K ? 32 : 0;
}

// Whether a superblock has a scale for each 16 columns; else it is for 32.
INLINE int has_scale_of_16(const int64_t type) { return type == Q2_K || type == Q3_K || type == Q6_K; }

static const int8_t iq4_table[16] __attribute__((aligned(16))) = {IQ4_VALUES};
static const int8_t mxfp4_table[16] __attribute__((aligned(16))) = {MXFP4_VALUES};

INLINE vint low_nibbles(vint v) { return and(v, bytes_of(15)); }
INLINE vint high_nibbles(vint v) { return and(shift_right(v, 4), bytes_of(15)); }

// ---- blocks of 32: first 16 columns of two rows' blocks (one in each half), then the other 16

static const uint8_t bit_bytes[2][16] __attribute__((aligned(16))) = {
    {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}, {2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3}};
static const uint8_t bit_masks[16] __attribute__((aligned(16))) = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};

// 16 in every byte whose bit (of the first or second 16) is set; `bits`: 32 bits at the beginning of each half
INLINE vint fifth_bits(vint bits, int second) {
    const vint mask = load_twice(bit_masks), byte = look_up(bits, load_twice(bit_bytes[second]));
    return and(equal_bytes(and(byte, mask), mask), bytes_of(16));
}

INLINE void unpack_pair(const int64_t type, const uint8_t *row, const uint8_t *other, vint *first, vint *second) {
    const int at = type == MXFP4 ? 1 : type == Q4_1 ? 4 : type == Q5_0 ? 6 : type == Q5_1 ? 8 : 2;
    if (type == Q8_0) {
        *first = load_two(row + 2, other + 2);
        *second = load_two(row + 18, other + 18);
        return;
    }
    const vint nibbles = load_two(row + at, other + at);
    *first = low_nibbles(nibbles);
    *second = high_nibbles(nibbles);
    if (type == Q5_0 || type == Q5_1) {
        const vint bits = load_two(row + at - 4, other + at - 4);
        *first = or(*first, fifth_bits(bits, 0));
        *second = or(*second, fifth_bits(bits, 1));
    }
    if (type == IQ4_NL || type == MXFP4) {
        const vint table = load_twice(type == IQ4_NL ? iq4_table : mxfp4_table);
        *first = look_up(table, *first);
        *second = look_up(table, *second);
    }
}

// ---- superblocks

typedef struct {
    vint w[8];            // 32 columns each
    vint scales, minima;  // int16, one for each 16 columns
} superblock;

// Six-bit scales and minima of q4_k and q5_k: bytes a (4), m (4), x (4) hold those of blocks 0-3 in the low bits of a and
// m, those of blocks 4-7 in the nibbles of x and the two high bits of a and m. Reads 16 bytes.
#if defined(VECTOR_AVX2) || defined(VECTOR_VNNI)
INLINE void unpack_six_bits(const uint8_t *from, vint *scales, vint *minima) {
    const __m128i amx = _mm_loadu_si128((const __m128i *)from), x = _mm_shuffle_epi32(amx, 0xaa);
    const __m128i low = _mm_and_si128(amx, _mm_set1_epi8(63));
    const __m128i nibbles = _mm_and_si128(_mm_srlv_epi32(x, _mm_setr_epi32(0, 4, 0, 4)), _mm_set1_epi8(15));
    const __m128i high = _mm_or_si128(nibbles, _mm_and_si128(_mm_srli_epi16(amx, 2), _mm_set1_epi8(48)));
    const __m128i all = _mm_unpacklo_epi32(low, high);
    *scales = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(all, all));
    *minima = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(all, all));
}
#else
INLINE void unpack_six_bits(const uint8_t *from, vint *scales, vint *minima) {
    uint32_t a, m, x, all[2][2];
    memcpy(&a, from, 4);
    memcpy(&m, from + 4, 4);
    memcpy(&x, from + 8, 4);
    all[0][0] = a & 0x3f3f3f3f;
    all[0][1] = (x & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    all[1][0] = m & 0x3f3f3f3f;
    all[1][1] = (x >> 4 & 0x0f0f0f0f) | (m >> 2 & 0x30303030);
    uint8_t bytes[16], twice[32];
    memcpy(bytes, all, 16);
    for (int i = 0; i < 32; i++) twice[i] = bytes[i / 2];
    *scales = widen_unsigned(twice);
    *minima = widen_unsigned(twice + 16);
}
#endif

// Nibbles of 64 columns lie in 32 bytes.
INLINE void unpack_nibbles(const uint8_t *nibbles, vint *w) {
    UNROLL for (int i = 0; i < 4; i++) {
        const vint both = load(nibbles + 32 * i);
        w[2 * i] = low_nibbles(both);
        w[2 * i + 1] = high_nibbles(both);
    }
}

// `mask` of every byte's bits, after they are moved to the right, or to the left for a negative number.
INLINE vint moved_bits(vint v, const int right, const int mask) {
    return and(right < 0 ? shift_left(v, right < 0 ? -right : 0) : shift_right(v, right < 0 ? 0 : right), bytes_of(mask));
}

// Two bits of 128 columns lie in 32 bytes.
INLINE void unpack_two_bits(const uint8_t *bits, vint *w) {
    UNROLL for (int i = 0; i < 8; i++) w[i] = moved_bits(load(bits + i / 4 * 32), i % 4 * 2, 3);
}

// One bit of 256 columns lies in 32 bytes; it becomes bit `to`.
INLINE void add_bits(const uint8_t *bits, const int to, vint *w) {
    const vint high = load(bits);
    UNROLL for (int i = 0; i < 8; i++) w[i] = or(w[i], moved_bits(high, i - to, 1 << to));
}

INLINE void unpack_q6_k(const block_q6_k *block, vint *w) {
    UNROLL for (int i = 0; i < 2; i++, w += 4) {
        const vint a = load(block->nibbles + 64 * i), b = load(block->nibbles + 64 * i + 32), high = load(block->high + 32 * i);
        w[0] = or(low_nibbles(a), moved_bits(high, -4, 48));
        w[1] = or(low_nibbles(b), moved_bits(high, -2, 48));
        w[2] = or(high_nibbles(a), moved_bits(high, 0, 48));
        w[3] = or(high_nibbles(b), moved_bits(high, 2, 48));
    }
}

INLINE void unpack_iq4_xs(const block_iq4_xs *block, vint *w) {
    const vint table = load_twice(iq4_table);
    UNROLL for (int i = 0; i < 8; i += 2) {
        const vint two = load(block->nibbles + 16 * i);
        const vint low = look_up(table, low_nibbles(two)), high = look_up(table, high_nibbles(two));
        w[i] = first_halves(low, high);
        w[i + 1] = second_halves(low, high);
    }
}

INLINE void unpack_weights(const int64_t type, const void *block, vint *w) {
    if (type == Q2_K) unpack_two_bits(((const block_q2_k *)block)->bits, w);
    if (type == Q3_K) {
        unpack_two_bits(((const block_q3_k *)block)->bits, w);
        add_bits(((const block_q3_k *)block)->high, 2, w);
    }
    if (type == Q4_K) unpack_nibbles(((const block_q4_k *)block)->nibbles, w);
    if (type == Q5_K) {
        unpack_nibbles(((const block_q5_k *)block)->nibbles, w);
        add_bits(((const block_q5_k *)block)->high, 4, w);
    }
    if (type == Q6_K) unpack_q6_k(block, w);
    if (type == IQ4_XS) unpack_iq4_xs(block, w);
}

// ---- their scales and minima

INLINE vint q3_k_scales(const block_q3_k *block) {
    uint32_t low[2], two;
    memcpy(low, block->scales, 8);
    memcpy(&two, block->scales + 8, 4);
    const uint32_t six[4] = {
        (low[0] & 0x0f0f0f0f) | (two << 4 & 0x30303030), (low[1] & 0x0f0f0f0f) | (two << 2 & 0x30303030),
        (low[0] >> 4 & 0x0f0f0f0f) | (two & 0x30303030), (low[1] >> 4 & 0x0f0f0f0f) | (two >> 2 & 0x30303030)};
    return subtract_int16(widen_unsigned(six), int16s_of(32));
}

static const int32_t fours[8] = {0, 4, 8, 12, 16, 20, 24, 28}, twos[8] = {0, 2, 4, 6, 8, 10, 12, 14};

INLINE vint iq4_xs_scales(const block_iq4_xs *block) {
    uint32_t low;
    memcpy(&low, block->scales_low, 4);
    const vint nibbles = and(shift_right_each(int32s_of((int32_t)low), fours), int32s_of(15));
    const vint high = and(shift_right_each(int32s_of(block->scales_high), twos), int32s_of(3));
    const vint scales = subtract_int32(or(nibbles, shift_left_int32(high, 4)), int32s_of(32));
    return or(and(scales, int32s_of(0xffff)), shift_left_int32(scales, 16));  // twice each
}

// Minima only for types that have them.
INLINE void unpack_scales(const int64_t type, const void *block, vint *scales, vint *minima) {
    if (type == Q2_K) {
        const vint bytes = widen_unsigned(((const block_q2_k *)block)->scales);
        *scales = and(bytes, int16s_of(15));
        *minima = shift_right(bytes, 4);
    }
    if (type == Q3_K) *scales = q3_k_scales(block);
    if (type == Q4_K) unpack_six_bits(((const block_q4_k *)block)->scales, scales, minima);
    if (type == Q5_K) unpack_six_bits(((const block_q5_k *)block)->scales, scales, minima);
    if (type == Q6_K) *scales = widen_signed(((const block_q6_k *)block)->scales);
    if (type == IQ4_XS) *scales = iq4_xs_scales(block);
}

INLINE void unpack_superblock(const int64_t type, const void *block, superblock *to) {
    unpack_weights(type, block, to->w);
    unpack_scales(type, block, &to->scales, &to->minima);
}

// Where d is in a superblock; dmin follows it.
INLINE int d_offset(const int64_t type) { return type == Q2_K ? 80 : type == Q3_K ? 108 : type == Q6_K ? 208 : 0; }
