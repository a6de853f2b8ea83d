// A matrix (rows, width) as the kernels hold it: plain float32 rows, or GGUF's blocks of 32 in packed order.
//
// Packed order: groups of eight rows; within a group, blocks of 32 columns one after the other. A block is
//   q4_0: eight fp16 scales, 4 x 32 bytes                        w = scale * (nibble - 8)
//   q4_1: eight fp16 scales, eight fp16 minima, 4 x 32 bytes     w = scale * nibble + minimum
//   q8_0: eight fp16 scales, 8 x 32 bytes                        w = scale * byte
// Byte 4r+i of vector j of 32 bytes belongs to row r. It holds columns 4j+i (low nibble) and 16+4j+i (high
// nibble), or in q8_0 column 4j+i: one vector multiplies four columns of eight rows, and the sums of the rows
// stay in their lanes.
#pragma once
#include <stdint.h>

typedef enum { FLOAT32 = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3 } matrix_kind;

enum { Q4_0_BLOCK = 144, Q4_1_BLOCK = 160, Q8_0_BLOCK = 272 };

typedef struct {
    int64_t kind, rows, width;
    int64_t precise;  // packed kinds: activations in two int8 terms instead of one, see matmul_quant.c
    const void *data;
    const float *bias;  // (rows,) or NULL
} matrix;

// y (batch, rows) = x (batch, width) W^T + bias, or that added to y. Returns 0, or 1 when memory is short.
int multiply(const matrix *m, const float *x, int64_t batch, float *y, int add);

// The same for float32 matrices, in matmul_f32.c, and for packed ones, in matmul_quant.c.
int multiply_float(const matrix *m, const float *x, int64_t batch, float *y, int add);
int multiply_packed(const matrix *m, const float *x, int64_t batch, float *y, int add);

static inline int64_t block_bytes(int64_t kind) {
    return kind == Q4_0 ? Q4_0_BLOCK : kind == Q4_1 ? Q4_1_BLOCK : Q8_0_BLOCK;
}

// Where the bytes of a packed block begin, behind its scales and minima.
static inline int64_t block_head(int64_t kind) { return kind == Q4_1 ? 32 : 16; }
