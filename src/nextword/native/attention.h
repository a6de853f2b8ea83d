// Attention of one new token in each row over those stored and itself.
#pragma once
#include <stdint.h>

typedef struct {
    float *qkv;                  // (batch, heads + 2 kv, width): queries, keys, values; turned in place
    const float *cosine, *sine;  // (positions, rotary), see models/rotary.py: sine carries its sign; NULL: none turn
    int64_t rotary;              // leading numbers of a head that turn
    float *keys, *values;        // (batch, kv, capacity, width)
    const int64_t *lengths;      // (batch,) tokens stored before this one, and so its position
    int64_t batch, heads, kv, width, capacity;
    int64_t window;  // how many of the last tokens are looked at; 0: all
    float scale, softcap;  // scores are cap * tanh(score / cap); 0: no cap
    float *y;  // (batch, heads * width)
} attention;

// Stores key and value behind each row's length and attends. Returns 0, or 1 when memory is short.
int attend(const attention *a);
