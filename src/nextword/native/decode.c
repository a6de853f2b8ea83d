// Any mix of tokens through all layers of a transformer: what models/transformer.py says layer by layer, in one call.
// The structures are mirrored in decode.py.
#include "attention.h"
#include "cpu.h"
#include "elementwise.h"
#include "matrix.h"
#include "pool.h"

typedef struct {
    norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, query_norm, key_norm;
    matrix qkv, out, up, down;
    const float *sinks;    // (heads,) or NULL
    int64_t window, rope;  // rope: which of the two tables; -1: none
} layer;

typedef struct {
    int64_t layer_count, width, heads, kv_heads, head_width, mlp_width;
    int64_t parallel, gated, activation;
    int64_t full_qk_norm;  // query_norm and key_norm are over all heads together
    float scale, softcap, residual_scale;
    const layer *layers;
} model;

typedef struct {
    placement at;
    void **keys, **values;  // a pointer for each layer: (pages, kv_heads, page_size, head_width)
    rope_table tables[2];
} state;

typedef struct {
    float *normed;    // (tokens, width): what attention or MLP reads
    float *second;    // (tokens, width): what the MLP reads in parallel with attention
    float *qkv;       // (tokens, heads + 2 kv_heads, head_width)
    float *attended;  // (tokens, heads * head_width)
    float *up;        // (tokens, mlp_width or, with gates, twice that)
    float *active;    // (tokens, mlp_width)
} workspace;

static void norm_to(const norm *n, const float *x, int64_t rows, int64_t width, float *y) {
    if (n->weight) normalize(n, x, rows, width, y);
    else if (x != y) memcpy(y, x, (size_t)(rows * width) * sizeof(float));
}

// x += residual_scale * post_norm(matrix * from)
static int add_product(const model *m, const matrix *w, const norm *post, const float *from, int64_t tokens, float *x,
                       float *spare) {
    if (!post->weight && m->residual_scale == 1) return multiply(w, from, tokens, x, 1);
    if (multiply(w, from, tokens, spare, 0)) return 1;
    norm_to(post, spare, tokens, m->width, spare);
    for (int64_t i = 0; i < tokens * m->width; i++) x[i] += m->residual_scale * spare[i];
    return 0;
}

// query_norm and key_norm, over each head or over all heads of a token
static void norm_heads(const model *m, const layer *l, float *qkv, int64_t tokens) {
    if (!l->query_norm.weight) return;
    const int64_t queries = m->heads * m->head_width, keys = m->kv_heads * m->head_width, all = queries + 2 * keys;
    const int64_t query_width = m->full_qk_norm ? queries : m->head_width;
    const int64_t key_width = m->full_qk_norm ? keys : m->head_width;
    normalize_heads(&l->query_norm, qkv, tokens, all, queries / query_width, query_width);
    normalize_heads(&l->key_norm, qkv + queries, tokens, all, keys / key_width, key_width);
}

static int attention_of_layer(const model *m, const layer *l, const state *s, int64_t index, const workspace *w) {
    if (multiply(&l->qkv, w->normed, s->at.tokens, w->qkv, 0)) return 1;
    norm_heads(m, l, w->qkv, s->at.tokens);
    attention a = {
        .qkv = w->qkv, .rope = l->rope < 0 ? (rope_table){0} : s->tables[l->rope],
        .keys = s->keys[index], .values = s->values[index], .kv_type = KV_F32, .at = &s->at,
        .heads = m->heads, .kv_heads = m->kv_heads, .width = m->head_width, .window = l->window,
        .scale = m->scale, .softcap = m->softcap, .sinks = l->sinks, .y = w->attended,
    };
    return attend(&a);
}

static int mlp_of_layer(const model *m, const layer *l, int64_t tokens, const float *normed, float *x, const workspace *w) {
    if (multiply(&l->up, normed, tokens, w->up, 0)) return 1;
    activate((activation_function)m->activation, (int)m->gated, w->up, tokens, m->mlp_width, w->active);
    return add_product(m, &l->down, &l->mlp_post_norm, w->active, tokens, x, w->normed);
}

static int run_layer(const model *m, const state *s, int64_t index, float *x, const workspace *w) {
    const layer *l = m->layers + index;
    norm_to(&l->attention_norm, x, s->at.tokens, m->width, w->normed);
    if (m->parallel) norm_to(&l->mlp_norm, x, s->at.tokens, m->width, w->second);
    if (attention_of_layer(m, l, s, index, w)) return 1;
    if (add_product(m, &l->out, &l->attention_post_norm, w->attended, s->at.tokens, x, w->normed)) return 1;
    if (m->parallel) return mlp_of_layer(m, l, s->at.tokens, w->second, x, w);
    norm_to(&l->mlp_norm, x, s->at.tokens, m->width, w->normed);
    return mlp_of_layer(m, l, s->at.tokens, w->normed, x, w);
}

// x (tokens, width) is what the first layer reads and becomes what the last one leaves. Returns 0, or 1 when memory
// is short: then `x` and the tokens' keys and values are spoilt, and nothing else.
EXPORT int nw_decode(const model *m, const state *s, float *x) {
    const int64_t tokens = s->at.tokens, attended = m->heads * m->head_width, up = m->mlp_width * (m->gated ? 2 : 1);
    const int64_t qkv = attended + 2 * m->kv_heads * m->head_width;
    const int64_t numbers = tokens * (2 * m->width + qkv + attended + up + m->mlp_width);
    float *memory = scratch(FOR_DECODE, (size_t)numbers * sizeof(float));
    if (!memory) return 1;
    workspace w = {.normed = memory};
    w.second = w.normed + tokens * m->width;
    w.qkv = w.second + tokens * m->width;
    w.attended = w.qkv + tokens * qkv;
    w.up = w.attended + tokens * attended;
    w.active = w.up + tokens * up;
    for (int64_t index = 0; index < m->layer_count; index++)
        if (run_layer(m, s, index, x, &w)) return 1;
    return 0;
}
