// A whole model in one call: token ids in, logits and scores out, for any mix of prompt chunks and decoding sequences.
// The structures are mirrored in runtime/structures.py.
#pragma once
#include "attention.h"
#include "elementwise.h"
#include "matrix.h"
#include "recurrent.h"

// A mixture of experts: a router sends each token to `active` of `count` MLPs.
typedef struct {
    int64_t count, active, width;
    int64_t normalize;  // a token's active experts have weights that sum to 1; otherwise a softmax over all experts
    matrix router;
    const matrix *up, *down;  // (count,)
} experts;

typedef struct {
    norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, query_norm, key_norm;
    matrix qkv, out, up, down;  // up, down: of the MLP, unless there are experts
    const experts *experts;     // NULL: a plain MLP
    const float *sinks;         // (heads,) or NULL
    int64_t window, rope;       // rope: which of the two tables; -1: none
    int64_t interleaved;        // rope rotates pairs (2i, 2i + 1): rows of queries and keys as some GGUF files store them
} layer;

typedef struct {
    int64_t layer_count, width, vocabulary, heads, kv_heads, head_width, mlp_width;
    int64_t parallel, gated, activation;
    int64_t full_qk_norm;                                           // query_norm, key_norm: over all heads together
    float attention_scale, attention_softcap, residual_scale;       // softcap 0: none
    float embedding_scale, logit_scale, logit_softcap;
    matrix embedding, positions, head;  // positions: learned ones, (context, width), or no rows
    norm final_norm;
    const layer *layers;       // NULL: a recurrent network
    const network *recurrent;  // NULL: a transformer
} model;

// Keys and values: (pages, layers, 2, kv_heads, page_size, head_width) of `type`.
typedef struct {
    int64_t type;  // F32, F16 or Q8_0
    int64_t pages, page_bytes;
    char *memory;
} kv_cache;

typedef struct {
    const int64_t *tokens;  // (at.tokens,)
    placement at;
    int64_t table_rows;  // of at.page_tables
    kv_cache cache;
    rope_table tables[2];      // of layers without and with a window
    const schedule *schedule;  // of a recurrent network: in place of `at`, `cache` and `tables`
    // Tokens after whose last layer anything is computed, ascending; the others only leave keys and values or a state.
    const int64_t *kept;
    int64_t kept_count;
    const int64_t *logit_rows;  // (logit_count,): indices into `kept`
    int64_t logit_count;
    const int64_t *scored_rows;  // (scored_count,): indices into `kept`
    int64_t scored_count;
    const int64_t *score_rows, *targets;  // (score_count,): index into `scored_rows`, and the token that follows
    int64_t score_count;
} batch;

typedef struct {
    float *hidden;     // (kept_count, width): what the head reads; or NULL
    float *logits;     // (logit_count, vocabulary)
    double *logprobs;  // (score_count,): ln p of each target
    int64_t *ranks;    // (score_count,): 1 for the most likely token, ties by id
} output;

// Embedded tokens x (tokens, width) through all layers and the final norm; x becomes the rows of the kept tokens,
// (kept_count, width). Returns 0, or 1 when memory is short.
int run_transformer(const model *m, const batch *b, float *x);

// y (tokens, width) = the experts' weighted outputs for x (tokens, width). Returns 0, or 1 when memory is short.
int run_experts(const model *m, const experts *e, const float *x, int64_t tokens, float *y);

// Moves the rows of the kept tokens to the front of `rows` (tokens, width).
void keep_rows(const batch *b, int64_t width, float *rows);

// NO_MEMORY: the tokens' keys and values or states are spoilt, and nothing else. The others: nothing was written.
typedef enum { DONE = 0, NO_MEMORY, BAD_TOKEN, BAD_ROW, BAD_SEQUENCE, BAD_POSITION, BAD_PAGE } forward_result;

EXPORT int nw_forward(const model *m, const batch *b, const output *out);
