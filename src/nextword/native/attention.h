// Attention of any mix of tokens over the pages of their sequences.
#pragma once
#include <stdint.h>

#include "matrix.h"

// Where the tokens of one call stand. Page j of a row of `page_tables` holds positions j * page_size onwards.
typedef struct {
    const int64_t *positions, *sequences;  // (tokens,): position in the sequence, row of page_tables
    const int32_t *page_tables;            // (sequences, table_width)
    int64_t tokens, table_width, page_size;
} placement;

typedef struct {
    const float *cosine, *sine;  // (positions, width), see rope.py: sine carries its sign; NULL: no rope
    int64_t width;               // leading numbers of a head that are rotated
    int64_t interleaved;         // 0: pairs (i, i + width / 2); 1: pairs (2i, 2i + 1), as GGUF stores some models' rows
} rope_table;

typedef struct {
    float *qkv;  // (tokens, heads + 2 kv_heads, width): queries, keys, values; rotated in place
    rope_table rope;
    void *keys, *values;  // of page 0: (kv_heads, page_size, width) in `kv_type`; page_size is a multiple of eight
    int64_t page_bytes;   // from a page to the next
    int64_t kv_type;      // F32, F16 or, where the width is a multiple of 32, Q8_0
    const placement *at;
    int64_t heads, kv_heads, width;
    int64_t window;        // how many of the last tokens are looked at; 0: all
    float scale, softcap;  // scores are cap * tanh(score / cap); 0: no cap
    const float *sinks;    // (heads,): a logit that joins the softmax's denominator; NULL: none
    float *y;              // (tokens, heads * width)
} attention;

// Stores the key and the value of every token in its page, then lets every token attend to positions 0 to its own.
// Returns 0, or 1 when memory is short.
int attend(const attention *a);
