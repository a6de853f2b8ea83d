// GGUF's blocks in plain C: their sizes, their integers, and rows as float32.
#include "quant_types.h"

#include "cpu.h"
#include "pool.h"

EXPORT int64_t nw_row_bytes(int64_t type, int64_t width) {
    const block_size size = block_of(type);
    return size.columns && width % size.columns == 0 ? width / size.columns * size.bytes : 0;
}

int64_t row_bytes(int64_t type, int64_t width) { return nw_row_bytes(type, width); }

// ---- the integers of a block

static void read_nibbles(const uint8_t *nibbles, int count, int middle, int8_t *to) {
    for (int i = 0; i < count; i++) {
        to[i] = (int8_t)((nibbles[i] & 15) - middle);
        to[count + i] = (int8_t)((nibbles[i] >> 4) - middle);
    }
}

static void look_up_nibbles(const uint8_t *nibbles, const int8_t *values, int8_t *to) {
    for (int i = 0; i < 16; i++) {
        to[i] = values[nibbles[i] & 15];
        to[16 + i] = values[nibbles[i] >> 4];
    }
}

static void add_fifth_bits(const uint8_t *high, int8_t *to) {
    for (int i = 0; i < 32; i++) to[i] = (int8_t)(to[i] + ((high[i / 8] >> i % 8 & 1) << 4));
}

static const int8_t iq4_values[16] = {IQ4_VALUES}, mxfp4_values[16] = {MXFP4_VALUES};

static void read_small_block(int64_t type, const void *block, plain_block *to) {
    to->columns = 32;
    to->has_minima = type == Q4_1 || type == Q5_1;
    to->d = type == MXFP4 ? half_power(*(const uint8_t *)block) : load_half(block);
    to->dmin = to->has_minima ? -load_half((const char *)block + 2) : 0;
    for (int i = 0; i < 2; i++) to->scales[i] = to->minima[i] = 1;
    switch (type) {
        case Q4_0: read_nibbles(((const block_q4_0 *)block)->nibbles, 16, 8, to->w); break;
        case Q4_1: read_nibbles(((const block_q4_1 *)block)->nibbles, 16, 0, to->w); break;
        case Q5_0:
            read_nibbles(((const block_q5_0 *)block)->nibbles, 16, 16, to->w);
            add_fifth_bits(((const block_q5_0 *)block)->high, to->w);
            break;
        case Q5_1:
            read_nibbles(((const block_q5_1 *)block)->nibbles, 16, 0, to->w);
            add_fifth_bits(((const block_q5_1 *)block)->high, to->w);
            break;
        case Q8_0: memcpy(to->w, ((const block_q8_0 *)block)->q, 32); break;
        case IQ4_NL: look_up_nibbles(((const block_iq4_nl *)block)->nibbles, iq4_values, to->w); break;
        case MXFP4: look_up_nibbles(((const block_mxfp4 *)block)->nibbles, mxfp4_values, to->w); break;
    }
}

static void read_two_bits(const uint8_t *bits, int8_t *to) {
    for (int i = 0; i < 256; i++) to[i] = (int8_t)(bits[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3);
}

static void read_q2_k(const block_q2_k *block, plain_block *to) {
    read_two_bits(block->bits, to->w);
    for (int i = 0; i < 16; i++) {
        to->scales[i] = block->scales[i] & 15;
        to->minima[i] = block->scales[i] >> 4;
    }
}

static void read_q3_k(const block_q3_k *block, plain_block *to) {
    read_two_bits(block->bits, to->w);
    for (int i = 0; i < 256; i++) to->w[i] = (int8_t)(to->w[i] - (block->high[i % 32] >> i / 32 & 1 ? 0 : 4));
    for (int i = 0; i < 16; i++) {
        int low = block->scales[i % 8] >> i / 8 * 4 & 15, high = block->scales[8 + i % 4] >> i / 4 * 2 & 3;
        to->scales[i] = (int16_t)((low | high << 4) - 32);
    }
}

// Six-bit scales and minima of eight blocks of 32 in twelve bytes, as q4_k and q5_k have them.
static void read_six_bits(const uint8_t *from, plain_block *to) {
    for (int i = 0; i < 16; i++) {
        int j = i / 2;
        to->scales[i] = (int16_t)(j < 4 ? from[j] & 63 : (from[j + 4] & 15) | from[j - 4] >> 6 << 4);
        to->minima[i] = (int16_t)(j < 4 ? from[j + 4] & 63 : from[j + 4] >> 4 | from[j] >> 6 << 4);
    }
}

static void read_q5_k(const block_q5_k *block, plain_block *to) {
    for (int i = 0; i < 4; i++) read_nibbles(block->nibbles + 32 * i, 32, 0, to->w + 64 * i);
    for (int i = 0; i < 256; i++) to->w[i] = (int8_t)(to->w[i] + ((block->high[i % 32] >> i / 32 & 1) << 4));
    read_six_bits(block->scales, to);
}

static void read_q6_k(const block_q6_k *block, plain_block *to) {
    for (int i = 0; i < 2; i++) read_nibbles(block->nibbles + 64 * i, 64, 32, to->w + 128 * i);
    int8_t high[256];
    read_two_bits(block->high, high);
    for (int i = 0; i < 256; i++) to->w[i] = (int8_t)(to->w[i] + (high[i] << 4));
    for (int i = 0; i < 16; i++) to->scales[i] = block->scales[i];
}

static void read_iq4_xs(const block_iq4_xs *block, plain_block *to) {
    for (int i = 0; i < 8; i++) look_up_nibbles(block->nibbles + 16 * i, iq4_values, to->w + 32 * i);
    for (int i = 0; i < 16; i++) {
        int j = i / 2, low = block->scales_low[j / 2] >> j % 2 * 4 & 15;
        to->scales[i] = (int16_t)((low | (block->scales_high >> 2 * j & 3) << 4) - 32);
    }
}

void read_block(int64_t type, const void *block, plain_block *to) {
    if (block_of(type).columns == 32) {
        read_small_block(type, block, to);
        return;
    }
    to->columns = 256;
    to->has_minima = type == Q2_K || type == Q4_K || type == Q5_K;
    switch (type) {
        case Q2_K: read_q2_k(block, to); break;
        case Q3_K: read_q3_k(block, to); break;
        case Q4_K:
            for (int i = 0; i < 4; i++) read_nibbles(((const block_q4_k *)block)->nibbles + 32 * i, 32, 0, to->w + 64 * i);
            read_six_bits(((const block_q4_k *)block)->scales, to);
            break;
        case Q5_K: read_q5_k(block, to); break;
        case Q6_K: read_q6_k(block, to); break;
        case IQ4_XS: read_iq4_xs(block, to); break;
    }
    // Where the file has d, and dmin behind it.
    const char *d = (const char *)block + (type == Q2_K ? 80 : type == Q3_K ? 108 : type == Q6_K ? 208 : 0);
    to->d = load_half(d);
    to->dmin = to->has_minima ? load_half(d + 2) : 0;
}

// ---- rows as float32. Every product and sum is rounded by itself, as gguf does: the bits are the same.

static void dequantize_block(int64_t type, const void *from, float *to) {
    plain_block block;
    read_block(type, from, &block);
    for (int i = 0; i < block.columns; i++) {
        to[i] = block.d * (float)block.scales[i / 16] * (float)block.w[i];
        if (block.has_minima) to[i] -= block.dmin * (float)block.minima[i / 16];
    }
}

static void widen_row(int64_t type, const void *row, int64_t width, float *to) {
    if (type == F32) {
        memcpy(to, row, (size_t)width * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < width; i++) {
        uint16_t half;
        memcpy(&half, (const char *)row + 2 * i, 2);
        uint32_t bits = (uint32_t)half << 16;
        if (type == BF16) memcpy(to + i, &bits, 4);
        else to[i] = half_to_float(half);
    }
}

void dequantize_row(int64_t type, const void *row, int64_t width, float *to) {
    if (is_float(type)) {
        widen_row(type, row, width, to);
        return;
    }
    const block_size size = block_of(type);
    for (int64_t at = 0; at < width; at += size.columns, row = (const char *)row + size.bytes)
        dequantize_block(type, row, to + at);
}

// ---- rows of a matrix

typedef struct {
    const matrix *m;
    const int64_t *ids;
    float *y;
} embed_job;

static void embed_row(void *pointer, int64_t index) {
    const embed_job *job = pointer;
    const segment *s = job->m->segments;
    int64_t row = job->ids[index];
    for (; row >= s->rows; s++) row -= s->rows;
    const char *from = (const char *)s->data + row * row_bytes(s->type, job->m->width);
    dequantize_row(s->type, from, job->m->width, job->y + index * job->m->width);
}

void embed_rows(const matrix *m, const int64_t *ids, int64_t count, float *y) {
    embed_job job = {m, ids, y};
    pool_run(embed_row, &job, count);
}

EXPORT void nw_embed_rows(const matrix *m, const int64_t *ids, int64_t count, float *y) { embed_rows(m, ids, count, y); }
