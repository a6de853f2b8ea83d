// A matrix (rows, width) as a GGUF file stores it: quantized blocks, halves or float32, multiplied where they lie.
#pragma once
#include <stdint.h>

typedef enum {  // GGUF's own type numbers
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
    Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39
} weight_type;

// Consecutive rows of a matrix as a file stores them (one tensor): row r begins at data + r * row_bytes(type, width).
// No alignment is assumed.
typedef struct {
    int64_t type, rows;
    const void *data;
} segment;

// A matrix (rows, width): its segments on top of each other (query, key and value may have different types).
typedef struct {
    int64_t rows, width, segment_count;
    const segment *segments;
    const float *bias;  // (rows,) or NULL
} matrix;

// y (batch, rows) = x (batch, width) W^T + bias, or that added to y. Returns 0, or 1 when memory is short.
// The bits of a row do not depend on the batch, the threads or the instruction set.
int multiply(const matrix *m, const float *x, int64_t batch, float *y, int add);

// Bytes of a row, or 0 for a type that is not above or a width that is not whole blocks.
int64_t row_bytes(int64_t type, int64_t width);

// One row as float32, the same bits as gguf-py's dequantize.
void dequantize_row(int64_t type, const void *row, int64_t width, float *to);

// y (count, width): the dequantized rows `ids`.
void embed_rows(const matrix *m, const int64_t *ids, int64_t count, float *y);
