// The layers of an RNN, an LSTM or a GRU. The structures are mirrored in runtime/structures.py.
#pragma once
#include "matrix.h"

typedef enum { RNN = 0, LSTM = 1, GRU = 2 } cell_kind;

typedef struct {
    matrix input, hidden;  // (gates * width, width)
} recurrent_layer;

typedef struct {
    int64_t kind, layer_count, width;
    const recurrent_layer *layers;
} network;

typedef struct {
    int64_t sequences, tokens, pages;
    const int64_t *first, *count;  // (sequences,): first token, how many; those with the most tokens come first
    const int64_t *source;         // (sequences,): page of the state before the first token; -1: zeros
    const int64_t *target;         // (tokens,): page that takes the state after a token; -1: none
    float *hidden, *cell;          // (layers, pages, width); cell NULL but for an LSTM
} schedule;

typedef struct {  // one sequence's
    const float *from_input, *from_hidden;  // (gates * width,)
    float *hidden, *cell;                   // (width,): the state
    int64_t width;
} gate_row;

// x (tokens, width) is what the first layer reads and becomes what the last one leaves. Returns 0, or 1 when memory
// is short: then `x` and the pages written to are spoilt, and nothing else.
int run_recurrent(const network *n, const schedule *s, float *x);
