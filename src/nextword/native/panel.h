// Panels for matmul_panel.inc: sixteen rows by 256 columns, unpacked to bytes that lie as they are multiplied.
#pragma once
#include "quant_unpack.h"

typedef struct {
    uint8_t w[64][2][32];      // four columns of eight rows; held_offset is added
    int16_t scales[16][16];    // of each run: those of rows r and r + 8 side by side
    int16_t minima[8][2][16];  // of each block of 32: of its two halves, row after row
    float d[8][16], m[8][16];  // of each block of 32; of a superblock only the first
} __attribute__((aligned(64))) panel;

// ---- how a type is held

// Added to what unpacking gives, to hold it without a sign, and as another type is held.
INLINE int extra_offset(const int64_t type) {
    if (type == Q4_0) return 8;    // as q5_0
    if (type == MXFP4) return 16;  // as q5_0
    if (type == Q3_K) return 28;   // as q6_k
#if defined(VECTOR_VNNI)
    if (is_signed(type)) return 128;  // its multiplier takes any byte
#endif
    return 0;
}
INLINE int held_offset(const int64_t type) { return offset_of(type) + extra_offset(type); }
INLINE int held_signed(const int64_t type) { return is_signed(type) && !extra_offset(type); }

// With AVX2 the sum of a row is two int16, for the even and the odd pair of every four columns, because its multiplier
// of bytes ends there and widening costs another multiplication. Elsewhere, and for signed weights, it is one int32.
#if defined(VECTOR_AVX2)
INLINE int sums_are_int16(const int64_t type) { return !held_signed(type); }
#else
#define sums_are_int16(type) 0
#endif

// Columns that are summed before they are scaled: 16 where there is a scale for so many, or where more do not fit.
INLINE int run_of(const int64_t type) {
    const int wide = sums_are_int16(type) && (type == Q5_1 || type == Q5_K);
    return has_scale_of_16(type) || wide ? 16 : 32;
}

// ---- filling one

// 32 bytes of eight rows: four bytes of every row side by side, eight times and `apart` bytes from each other.
INLINE void turn(const eight_rows *rows, int64_t at, void *to, int64_t apart) {
    UNROLL for (int half = 0; half < 2; half++) {
        vint four[4];
        UNROLL for (int r = 0; r < 4; r++)
            four[r] = load_two(rows->row[r] + at + 16 * half, rows->row[r + 4] + at + 16 * half);
        transpose(four);
        UNROLL for (int i = 0; i < 4; i++) store((char *)to + apart * (4 * half + i), four[i]);
    }
}

// `scales`: of pairs of 16 columns, of eight rows and eight more.
INLINE void join_scales(const int64_t type, int16_t (*scales)[2][16], panel *to) {
    const vint even = int32s_of(0xffff), odd = int32s_of(-0x10000);
    for (int b = 0; b < 8; b++) {
        const vint first = load(scales[b][0]), second = load(scales[b][1]);
        if (run_of(type) == 32) {
            store(to->scales[b], or(and(first, even), and(second, odd)));
            continue;
        }
        store(to->scales[2 * b], or(and(first, even), shift_left_int32(second, 16)));
        store(to->scales[2 * b + 1], or(and(shift_right_int32(first, 16), even), and(second, odd)));
    }
}

// Where the weights lie in a superblock, in pieces of 32 bytes that unpacking reads byte for byte: a superblock made of
// turned pieces is unpacked as any other, and gives turned weights.
INLINE int pieces_at(const int64_t type) { return type == Q3_K || type == Q6_K ? 0 : 16; }
INLINE int pieces_of(const int64_t type) {
    return type == Q2_K ? 2 : type == Q3_K ? 3 : type == Q4_K ? 4 : type == Q5_K ? 5 : 6;
}

INLINE void fill_weights(const int64_t type, const eight_rows *rows, int64_t offset, int g, panel *to) {
    const int extra = extra_offset(type);
    uint8_t turned[8][256];
    for (int64_t at = pieces_at(type); at < pieces_at(type) + 32 * pieces_of(type); at += 32)
        turn(rows, offset + at, turned[0] + at, sizeof turned[0]);
    for (int j = 0; j < 8; j++) {
        vint w[8];
        unpack_weights(type, turned[j], w);
        UNROLL for (int b = 0; b < 8; b++) store(to->w[8 * b + j][g], extra ? add_bytes(w[b], bytes_of(extra)) : w[b]);
    }
}

// The bytes of iq4_xs are not in such pieces: its rows are unpacked first.
INLINE void fill_values(const int64_t type, const eight_rows *rows, int64_t offset, int g, panel *to) {
    vint w[8][8];
    eight_rows unpacked;
    for (int r = 0; r < 8; r++) {
        unpack_weights(type, rows->row[r] + offset, w[r]);
        unpacked.row[r] = (const uint8_t *)w[r];
    }
    for (int b = 0; b < 8; b++) turn(&unpacked, 32 * b, to->w[8 * b][g], 64);
    for (int i = 0; extra_offset(type) && i < 64; i++)
        store(to->w[i][g], add_bytes(load(to->w[i][g]), bytes_of(extra_offset(type))));
}

INLINE void fill_scales(const int64_t type, const eight_rows *rows, int64_t offset, float *d, float *m) {
    f8 scales, minima;
    scales_and_minima(type, rows, offset, &scales, &minima);
    f8_store(d, scales);
    if (has_minima(type)) f8_store(m, minima);
}

INLINE void fill_superblock(const int64_t type, const eight_rows *rows, int64_t offset, panel *to) {
    int16_t scales[8][2][16];
    for (int g = 0; g < 2; g++) {
        vint of_row[2][8];
        eight_rows scale_rows, minimum_rows;
        for (int r = 0; r < 8; r++) {
            unpack_scales(type, rows[g].row[r] + offset, of_row[0] + r, of_row[1] + r);
            scale_rows.row[r] = (const uint8_t *)(of_row[0] + r);
            minimum_rows.row[r] = (const uint8_t *)(of_row[1] + r);
        }
        if (type == IQ4_XS) fill_values(type, rows + g, offset, g, to);
        else fill_weights(type, rows + g, offset, g, to);
        turn(&scale_rows, 0, scales[0][g], 64);
        fill_scales(type, rows + g, offset + d_offset(type), to->d[0] + 8 * g, to->m[0] + 8 * g);
        if (has_minima(type)) turn(&minimum_rows, 0, to->minima[0][g], 64);
    }
    join_scales(type, scales, to);
}

INLINE void fill_block(const int64_t type, const eight_rows *rows, int64_t offset, int b, panel *to) {
    const int extra = extra_offset(type);
    for (int g = 0; g < 2; g++) {
        vint w[2][4];
        UNROLL for (int r = 0; r < 4; r++) {
            unpack_pair(type, rows[g].row[r] + offset, rows[g].row[r + 4] + offset, &w[0][r], &w[1][r]);
            for (int i = 0; extra && i < 2; i++) w[i][r] = add_bytes(w[i][r], bytes_of(extra));
        }
        UNROLL for (int i = 0; i < 2; i++) {
            transpose(w[i]);
            UNROLL for (int j = 0; j < 4; j++) store(to->w[8 * b + 4 * i + j][g], w[i][j]);
        }
        fill_scales(type, rows + g, offset, to->d[b] + 8 * g, to->m[b] + 8 * g);
    }
}

// The part of sixteen rows that superblock `index` is. Behind the last row, that one is repeated.
INLINE void fill_panel(const int64_t type, const segment_job *job, int64_t row, int64_t index, int blocks, panel *to) {
    const eight_rows rows[2] = {rows_from(job, row), rows_from(job, row + 8)};
    const int64_t bytes = block_of(type).bytes;
    if (block_of(type).columns == SUPERBLOCK) {
        fill_superblock(type, rows, index * bytes, to);
        return;
    }
    for (int b = 0; b < blocks; b++) fill_block(type, rows, (8 * index + b) * bytes, b, to);
}
