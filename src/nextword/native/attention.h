// Attention of any mix of tokens over the pages of their sequences.
#pragma once
#include <stdint.h>

// Where the tokens of one call stand. Page j of a row of `page_tables` holds positions j * page_size onwards.
typedef struct {
    const int64_t *positions, *sequences;  // (tokens,): position in the sequence, row of page_tables
    const int32_t *page_tables;            // (sequences, table_width)
    int64_t tokens, table_width, page_size;
} placement;

typedef struct {
    const float *cosine, *sine;  // (positions, width), see models/rotary.py: sine carries its sign; NULL: no rope
    int64_t width;               // leading numbers of a head that are rotated
    int64_t interleaved;         // 0: pairs (i, i + width / 2); 1: pairs (2i, 2i + 1), as GGUF stores some models' rows
} rope_table;

typedef enum { KV_F32 = 0, KV_F16 = 1, KV_Q8_0 = 8 } kv_cache_type;  // GGUF's numbers

// Bytes of a cached key or value; Q8_0 takes widths that are a multiple of 32.
int64_t kv_row_bytes(int64_t kv_type, int64_t width);

typedef struct {
    float *qkv;  // (tokens, heads + 2 kv_heads, width): queries, keys, values; rotated in place
    rope_table rope;
    void *keys, *values;  // (pages, kv_heads, page_size, width) in `kv_type`; page_size is a multiple of eight
    int64_t kv_type;      // a kv_cache_type
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
