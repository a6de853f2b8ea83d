// The blocks of GGUF's quantized types, byte for byte as in a file.
//
// Types with a scale for each 32 columns: w = d * q (+ m). Column i < 16 of nibbles is the low half of byte i, column
// 16 + i its high half; the fifth bits of q5 are bit i of `high`, a little-endian number.
//
// Types with superblocks of 256 columns: w = d * scale * q (- dmin * minimum), with an integer scale for each 16 or 32
// columns.
#pragma once
#include <stdint.h>

#include "cpu.h"
#include "matrix.h"

typedef uint16_t half;  // float16

typedef struct { half d; uint8_t nibbles[16]; } __attribute__((packed)) block_q4_0;                      // q - 8
typedef struct { half d, m; uint8_t nibbles[16]; } __attribute__((packed)) block_q4_1;                   // q
typedef struct { half d; uint8_t high[4], nibbles[16]; } __attribute__((packed)) block_q5_0;             // q - 16
typedef struct { half d, m; uint8_t high[4], nibbles[16]; } __attribute__((packed)) block_q5_1;          // q
typedef struct { half d; int8_t q[32]; } __attribute__((packed)) block_q8_0;                             // q
typedef struct { half d; uint8_t nibbles[16]; } __attribute__((packed)) block_iq4_nl;                    // iq4_values[q]
typedef struct { uint8_t exponent, nibbles[16]; } __attribute__((packed)) block_mxfp4;                   // mxfp4_values[q]

// 64 columns of nibbles lie in 32 bytes: low halves, then high halves. 128 columns of two bits lie in 32 bytes, bits 0-1
// being the first 32. One bit a column: bit k of byte i belongs to column 32k + i.
typedef struct { uint8_t scales[16], bits[64]; half d, dmin; } __attribute__((packed)) block_q2_k;       // 4 bits each
typedef struct { uint8_t high[32], bits[64], scales[12]; half d; } __attribute__((packed)) block_q3_k;   // q - 4
typedef struct { half d, dmin; uint8_t scales[12], nibbles[128]; } __attribute__((packed)) block_q4_k;
typedef struct { half d, dmin; uint8_t scales[12], high[32], nibbles[128]; } __attribute__((packed)) block_q5_k;
// 128 columns: low nibbles of 64 bytes, then their high nibbles; two more bits in 32 bytes, bits 0-1 being the first 32.
typedef struct { uint8_t nibbles[128], high[64]; int8_t scales[16]; half d; } __attribute__((packed)) block_q6_k;  // q - 32
// 32 columns lie in 16 bytes as in q4_0.
typedef struct { half d; uint16_t scales_high; uint8_t scales_low[4], nibbles[128]; } __attribute__((packed)) block_iq4_xs;

#define IQ4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define MXFP4_VALUES 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

typedef struct {
    int columns, bytes;
} block_size;

// {0, 0} for a type that is not here.
INLINE block_size block_of(int64_t type) {
    switch (type) {
        case F32: return (block_size){1, 4};
        case F16: case BF16: return (block_size){1, 2};
        case Q4_0: return (block_size){32, sizeof(block_q4_0)};
        case Q4_1: return (block_size){32, sizeof(block_q4_1)};
        case Q5_0: return (block_size){32, sizeof(block_q5_0)};
        case Q5_1: return (block_size){32, sizeof(block_q5_1)};
        case Q8_0: return (block_size){32, sizeof(block_q8_0)};
        case IQ4_NL: return (block_size){32, sizeof(block_iq4_nl)};
        case MXFP4: return (block_size){32, sizeof(block_mxfp4)};
        case Q2_K: return (block_size){256, sizeof(block_q2_k)};
        case Q3_K: return (block_size){256, sizeof(block_q3_k)};
        case Q4_K: return (block_size){256, sizeof(block_q4_k)};
        case Q5_K: return (block_size){256, sizeof(block_q5_k)};
        case Q6_K: return (block_size){256, sizeof(block_q6_k)};
        case IQ4_XS: return (block_size){256, sizeof(block_iq4_xs)};
        default: return (block_size){0, 0};
    }
}

// 2^(exponent - 128), with subnormal numbers where float32 has them
static inline float half_power(uint8_t exponent) {
    uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (uint32_t)(exponent - 1) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}

static inline int is_float(int64_t type) { return type == F32 || type == F16 || type == BF16; }

// A superblock of integers with an integer scale for each 16 columns, read by plain C. `columns` are 256, or 32 for the
// types whose blocks have a scale of their own: then every scale is 1, and the block's float minimum is in `dmin`,
// negated, with a minimum of 1.
typedef struct {
    int8_t w[256];
    int16_t scales[16], minima[16];
    float d, dmin;
    int columns, has_minima;
} plain_block;

void read_block(int64_t type, const void *block, plain_block *to);
