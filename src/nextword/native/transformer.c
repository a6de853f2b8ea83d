// All layers of a transformer, for any mix of tokens: what models/transformer.py says layer by layer.
#include "cpu.h"
#include "forward.h"
#include "pool.h"

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

// x += residual_scale * post_norm(products); `products` is overwritten.
static void add_products(const model *m, const norm *post, float *products, int64_t tokens, float *x) {
    norm_to(post, products, tokens, m->width, products);
    for (int64_t i = 0; i < tokens * m->width; i++) x[i] += m->residual_scale * products[i];
}

// x += residual_scale * post_norm(matrix * from)
static int add_product(const model *m, const matrix *w, const norm *post, const float *from, int64_t tokens, float *x,
                       float *spare) {
    if (!post->weight && m->residual_scale == 1) return multiply(w, from, tokens, x, 1);
    if (multiply(w, from, tokens, spare, 0)) return 1;
    add_products(m, post, spare, tokens, x);
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

static int attention_of_layer(const model *m, const batch *b, int64_t index, const workspace *w) {
    const layer *l = m->layers + index;
    if (multiply(&l->qkv, w->normed, b->at.tokens, w->qkv, 0)) return 1;
    norm_heads(m, l, w->qkv, b->at.tokens);
    rope_table rope = l->rope < 0 ? (rope_table){0} : b->tables[l->rope];
    rope.interleaved = l->interleaved;
    const int64_t bytes = b->cache.page_bytes / (2 * m->layer_count);  // of a layer's keys, or of its values
    char *keys = b->cache.memory + 2 * index * bytes;
    attention a = {
        .qkv = w->qkv, .rope = rope, .at = &b->at,
        .kv_type = b->cache.type, .keys = keys, .values = keys + bytes, .page_bytes = b->cache.page_bytes,
        .heads = m->heads, .kv_heads = m->kv_heads, .width = m->head_width, .window = l->window,
        .scale = m->attention_scale, .softcap = m->attention_softcap, .sinks = l->sinks, .y = w->attended,
    };
    return attend(&a);
}

// x += the MLP or the experts over `normed`, which is one of the workspace's first two
static int mlp_of_layer(const model *m, const layer *l, int64_t tokens, const float *normed, float *x, const workspace *w) {
    float *spare = normed == w->normed ? w->second : w->normed;
    if (l->experts) {
        if (run_experts(m, l->experts, normed, tokens, spare)) return 1;
        add_products(m, &l->mlp_post_norm, spare, tokens, x);
        return 0;
    }
    if (multiply(&l->up, normed, tokens, w->up, 0)) return 1;
    activate((activation_function)m->activation, (int)m->gated, w->up, tokens, m->mlp_width, w->active);
    return add_product(m, &l->down, &l->mlp_post_norm, w->active, tokens, x, spare);
}

// Behind the last layer's attention only the kept tokens go on.
static int64_t keep_tokens(const model *m, const batch *b, float *x, const workspace *w) {
    keep_rows(b, m->width, x);
    keep_rows(b, m->heads * m->head_width, w->attended);
    if (m->parallel) keep_rows(b, m->width, w->second);
    return b->kept_count;
}

static int run_layer(const model *m, const batch *b, int64_t index, float *x, const workspace *w) {
    const layer *l = m->layers + index;
    int64_t tokens = b->at.tokens;
    norm_to(&l->attention_norm, x, tokens, m->width, w->normed);
    if (m->parallel) norm_to(&l->mlp_norm, x, tokens, m->width, w->second);
    if (attention_of_layer(m, b, index, w)) return 1;
    if (index == m->layer_count - 1) tokens = keep_tokens(m, b, x, w);
    if (!tokens) return 0;
    if (add_product(m, &l->out, &l->attention_post_norm, w->attended, tokens, x, w->normed)) return 1;
    if (m->parallel) return mlp_of_layer(m, l, tokens, w->second, x, w);
    norm_to(&l->mlp_norm, x, tokens, m->width, w->normed);
    return mlp_of_layer(m, l, tokens, w->normed, x, w);
}

int run_transformer(const model *m, const batch *b, float *x) {
    const int64_t tokens = b->at.tokens, attended = m->heads * m->head_width, up = m->mlp_width * (m->gated ? 2 : 1);
    const int64_t qkv = attended + 2 * m->kv_heads * m->head_width;
    const int64_t numbers = tokens * (2 * m->width + qkv + attended + up + m->mlp_width);
    float *memory = scratch(FOR_LAYERS, (size_t)numbers * sizeof(float));
    if (!memory) return 1;
    workspace w = {.normed = memory};
    w.second = w.normed + tokens * m->width;
    w.qkv = w.second + tokens * m->width;
    w.attended = w.qkv + tokens * qkv;
    w.up = w.attended + tokens * attended;
    w.active = w.up + tokens * up;
    for (int64_t index = 0; index < m->layer_count; index++)
        if (run_layer(m, b, index, x, &w)) return 1;
    if (b->kept_count) norm_to(&m->final_norm, x, b->kept_count, m->width, x);
    return 0;
}
