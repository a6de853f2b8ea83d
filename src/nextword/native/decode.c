// Any mix of tokens through all layers of a transformer: what models/transformer.py says layer by layer, in one call.
// The structures are mirrored in decode.py.
#include "attention.h"
#include "cpu.h"
#include "matrix.h"
#include "pool.h"
#include "elementwise.h"

typedef struct {
    norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, query_norm, key_norm;
    matrix qkv, out, up, down;
    int64_t window, local;  // local: which of the two rotary tables
} layer;

typedef struct {
    int64_t layers, width, heads, kv, head_width, mlp_width;
    int64_t rms, parallel, gated, function;
    int64_t whole_qk_norm;  // query_norm and key_norm are over all heads together
    float eps, scale, softcap;
    const layer *each;
} model;

typedef struct {
    const float *cosine, *sine;
    int64_t rotary;
} rotary_table;

typedef struct {
    placement at;
    float **keys, **values;  // a pointer for each layer: (pages, kv, page_size, head_width)
    rotary_table tables[2];
} state;

typedef struct {
    float *read;    // (tokens, width): what attention or MLP reads
    float *second;  // (tokens, width): what the MLP reads in parallel with attention
    float *fused;   // (tokens, heads + 2 kv, head_width)
    float *mixed;   // (tokens, heads * head_width)
    float *inner;   // (tokens, mlp_width or, with gates, twice that)
    float *active;  // (tokens, mlp_width)
} room;

static void norm_to(const model *m, const norm *n, const float *x, int64_t rows, int64_t width, float *y) {
    if (n->weight) normalise(n, (int)m->rms, m->eps, x, rows, width, y);
    else if (x != y) memcpy(y, x, (size_t)(rows * width) * sizeof(float));
}

// x += post_norm(matrix * from)
static int add_product(const model *m, const matrix *w, const norm *post, const float *from, int64_t tokens, float *x,
                       float *spare) {
    if (!post->weight) return multiply(w, from, tokens, x, 1);
    if (multiply(w, from, tokens, spare, 0)) return 1;
    normalise(post, (int)m->rms, m->eps, spare, tokens, m->width, spare);
    for (int64_t i = 0; i < tokens * m->width; i++) x[i] += spare[i];
    return 0;
}

// query_norm and key_norm, over each head or over all heads of a token
static void norm_heads(const model *m, const layer *l, float *fused, int64_t tokens) {
    if (!l->query_norm.weight) return;
    const int64_t queries = m->heads * m->head_width, keys = m->kv * m->head_width, all = queries + 2 * keys;
    const int64_t apart = m->whole_qk_norm ? queries : m->head_width, key_apart = m->whole_qk_norm ? keys : apart;
    normalise_parts(&l->query_norm, (int)m->rms, m->eps, fused, tokens, all, queries / apart, apart);
    normalise_parts(&l->key_norm, (int)m->rms, m->eps, fused + queries, tokens, all, keys / key_apart, key_apart);
}

static int attention_of_layer(const model *m, const layer *l, const state *s, int64_t index, const room *r) {
    if (multiply(&l->qkv, r->read, s->at.tokens, r->fused, 0)) return 1;
    norm_heads(m, l, r->fused, s->at.tokens);
    const rotary_table *table = &s->tables[l->local];
    attention a = {
        .qkv = r->fused, .cosine = table->cosine, .sine = table->sine, .rotary = table->rotary,
        .keys = s->keys[index], .values = s->values[index], .at = &s->at,
        .heads = m->heads, .kv = m->kv, .width = m->head_width, .window = l->window,
        .scale = m->scale, .softcap = m->softcap, .y = r->mixed,
    };
    return attend(&a);
}

static int mlp_of_layer(const model *m, const layer *l, int64_t tokens, const float *read, float *x, const room *r) {
    if (multiply(&l->up, read, tokens, r->inner, 0)) return 1;
    activate((activation_function)m->function, (int)m->gated, r->inner, tokens, m->mlp_width, r->active);
    return add_product(m, &l->down, &l->mlp_post_norm, r->active, tokens, x, r->read);
}

static int through_layer(const model *m, const state *s, int64_t index, float *x, const room *r) {
    const layer *l = m->each + index;
    norm_to(m, &l->attention_norm, x, s->at.tokens, m->width, r->read);
    if (m->parallel) norm_to(m, &l->mlp_norm, x, s->at.tokens, m->width, r->second);
    if (attention_of_layer(m, l, s, index, r)) return 1;
    if (add_product(m, &l->out, &l->attention_post_norm, r->mixed, s->at.tokens, x, r->read)) return 1;
    if (m->parallel) return mlp_of_layer(m, l, s->at.tokens, r->second, x, r);
    norm_to(m, &l->mlp_norm, x, s->at.tokens, m->width, r->read);
    return mlp_of_layer(m, l, s->at.tokens, r->read, x, r);
}

// x (tokens, width) is what the first layer reads and becomes what the last one leaves. Returns 0, or 1 when memory
// is short: then `x` and the tokens' keys and values are spoilt, and nothing else.
EXPORT int nw_forward(const model *m, const state *s, float *x) {
    const int64_t tokens = s->at.tokens, mixed = m->heads * m->head_width, inner = m->mlp_width * (m->gated ? 2 : 1);
    const int64_t fused = mixed + 2 * m->kv * m->head_width;
    const int64_t numbers = tokens * (2 * m->width + fused + mixed + inner + m->mlp_width);
    float *held = scratch(FOR_STEP, (size_t)numbers * sizeof(float));
    if (!held) return 1;
    room r = {.read = held};
    r.second = r.read + tokens * m->width;
    r.fused = r.second + tokens * m->width;
    r.mixed = r.fused + tokens * fused;
    r.inner = r.mixed + tokens * mixed;
    r.active = r.inner + tokens * inner;
    for (int64_t index = 0; index < m->layers; index++)
        if (through_layer(m, s, index, x, &r)) return 1;
    return 0;
}
