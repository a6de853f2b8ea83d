// What the kernels of a quantized matrix product share: activations in integers, and a job of one segment's rows.
//
// The arithmetic, the same on every path, so that the results are the same bits whatever the batch, the tiling, the
// threads and the instruction set. Integer sums are exact (wrapped intermediate sums are fine), every float operation
// is one of those written here, one accumulator for each pair of a row and a vector, from the first column to the last.
//   types with superblocks:  total = sum over blocks of multiplier * scale * dot, least = the same of minima and sums
//       acc = fma(d * a.scale, (float)total, acc)
//       acc = fma(-(dmin * a.scale), (float)least, acc)    where there are minima
//   types with blocks of 32: dot = the block's integer product
//       acc = fma(d * a.scales[b], (float)dot, acc)
//       acc = fma(m, a.float_sums[b], acc)                 where there are minima
// then + bias, and y + that if `add`. No total leaves int32: the largest are those of
//   q6_k:   16 x 16 columns of 15 * 128 * (32 * 127) = 1,997,537,280
//   iq4_xs:  8 x 32 columns of 15 * 32 * (127 * 127) = 1,981,931,520
#pragma once
#include "cpu.h"
#include "matrix.h"
#include "quant_types.h"

#define SUPERBLOCK 256
#define MAX_MULTIPLIER 15

// 256 columns of a vector (behind its end: zeros), in two levels: x ~ scale * multiplier * q. A NaN or an infinity makes
// every float here NaN and every integer 0.
typedef struct {
    int8_t q[256];           // -127..127
    int16_t sums[16];        // multiplier * (sum of q) of each 16 columns: at most 15 * 16 * 127 = 30,480
    int16_t multipliers[16];  // 1..15, of each block of 32 twice
    float scales[8];         // scale * multiplier
    float float_sums[8];     // scales * (float)(sum of q) of each block
    int32_t block_sums[8];   // sum of q of each block
    float scale;             // largest |x| / (15 * 127)
    int16_t negative_pairs[16][2];  // -(sum of q) of each 16 columns: of columns 0 and 1 of every four, and of 2 and 3
} __attribute__((aligned(64))) activations;

// Rows of one segment of a matrix. y[vector * stride + row], row being counted from the segment's first.
typedef struct {
    int64_t type, rows, width, row_bytes;
    const uint8_t *data;
    const float *bias;     // of the segment's first row, or NULL
    const float *x;        // (batch, width)
    const activations *a;  // (superblocks, batch); only for quantized types
    int64_t batch, superblocks, stride;
    float *y;  // of the segment's first row
    int add;
} segment_job;

// The address of row `row`, or of the last one where the segment has no such row.
static inline const uint8_t *row_at(const segment_job *job, int64_t row) {
    return job->data + (row < job->rows ? row : job->rows - 1) * job->row_bytes;
}

static inline void store_sum(const segment_job *job, int64_t row, int64_t vector, float sum) {
    float *y = job->y + vector * job->stride + row;
    if (job->bias) sum += job->bias[row];
    *y = job->add ? *y + sum : sum;
}

// What is compiled for each instruction set.
typedef struct {
    // One vector of a width that is a multiple of 32; from superblock to superblock, `to` moves on by `apart`.
    void (*quantize_activations)(const float *x, int64_t width, int64_t apart, activations *to);
    // Rows `row` to `end` times every vector: quantized types (the same for few vectors and for many: six or more), and
    // F32, F16 and BF16.
    void (*multiply_few)(const segment_job *job, int64_t row, int64_t end);
    void (*multiply_many)(const segment_job *job, int64_t row, int64_t end);
    void (*multiply_floats)(const segment_job *job, int64_t row, int64_t end);
} kernels;

#define DECLARE_KERNELS(set)                                                                \
    void quantize_activations_##set(const float *x, int64_t width, int64_t apart, activations *to); \
    void multiply_few_##set(const segment_job *job, int64_t row, int64_t end);              \
    void multiply_many_##set(const segment_job *job, int64_t row, int64_t end);             \
    void multiply_floats_##set(const segment_job *job, int64_t row, int64_t end);
#define KERNELS(set) \
    (kernels){quantize_activations_##set, multiply_few_##set, multiply_many_##set, multiply_floats_##set}

DECLARE_KERNELS(plain)
DECLARE_KERNELS(avx2)
DECLARE_KERNELS(avx_vnni)
DECLARE_KERNELS(avx512_vnni)
DECLARE_KERNELS(neon)
