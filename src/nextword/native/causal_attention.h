// Causal attention of training, forward and backward: FlashAttention 2 (Dao 2023, 2307.08691) in float32. No matrix of
// time x time is stored; of the forward pass, the backward pass needs the logarithm of each query's sum of weights.
//
// Queries lie side by side in the lanes of vectors and every sum over numbers, keys or queries is added in its order,
// so results depend neither on the number of threads nor on the instruction set.
#pragma once
#include <stdatomic.h>

#include "elementwise.h"

typedef struct {
    int64_t batch, time, width;  // width: a multiple of eight
    float scale;
    // A query sees the keys from its first one to its own position. (batch or 1, time), not decreasing; NULL: from 0
    const float *first_keys;
    int64_t first_stride;  // from one batch row's to the next's
    head_rows queries, keys, values, out;
    float *log_sums;  // (batch, heads, time)
    head_rows out_grad, query_grad, key_grad, value_grad;  // for the backward pass
    _Atomic int failed;  // memory was short
} causal_attention;

#define ATTENTION_CHUNK 128  // queries of a work item of the forward pass

// Output and log_sums; the gradients of queries, keys and values. On torch's threads; 0 if memory is short.
int nw_causal_attention(causal_attention *a, int threads);
int nw_causal_attention_backward(causal_attention *a, int threads);
