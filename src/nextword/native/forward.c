// Token ids in, logits and scores out, for any mix of tokens: embedding, layers, head.
#include "forward.h"

#include <math.h>

#include "cpu.h"
#include "f32_kernels.h"
#include "pool.h"
#include "softmax_f64.h"

#define SCORED_NUMBERS (4 << 20)  // logits of scored rows that are in memory at a time
#define CAPPED_NUMBERS 8192       // logits of a chunk that is scaled and capped

void keep_rows(const batch *b, int64_t width, float *rows) {
    for (int64_t i = 0; i < b->kept_count; i++)
        if (b->kept[i] != i) memcpy(rows + i * width, rows + b->kept[i] * width, (size_t)width * sizeof(float));
}

static int embed(const model *m, const batch *b, float *x) {
    const int64_t tokens = b->at.tokens, numbers = tokens * m->width;
    embed_rows(&m->embedding, b->tokens, tokens, x);
    for (int64_t i = 0; m->embedding_scale != 1 && i < numbers; i++) x[i] *= m->embedding_scale;
    if (!m->positions.rows) return 0;
    float *learned = scratch(FOR_LAYERS, (size_t)numbers * sizeof(float));
    if (!learned) return 1;
    embed_rows(&m->positions, b->at.positions, tokens, learned);
    for (int64_t i = 0; i < numbers; i++) x[i] += learned[i];
    return 0;
}

// ---- logits

typedef struct {
    float *logits;
    int64_t count;
    float scale, cap;
} cap_job;

static void cap_chunk(void *pointer, int64_t chunk) {
    const cap_job *job = pointer;
    const int64_t from = chunk * CAPPED_NUMBERS, to = min_i64(from + CAPPED_NUMBERS, job->count);
    if (job->scale != 1)
        for (int64_t i = from; i < to; i++) job->logits[i] *= job->scale;
    if (job->cap != 0) find_f32_kernels()->soft_cap(job->logits + from, to - from, job->cap);
}

// float32 (rows, vocabulary) of hidden rows (rows, width)
static int logits_of(const model *m, const float *hidden, int64_t rows, float *logits) {
    if (multiply(&m->head, hidden, rows, logits, 0)) return 1;
    cap_job job = {logits, rows * m->vocabulary, m->logit_scale, m->logit_softcap};
    if (job.scale != 1 || job.cap != 0) pool_run(cap_chunk, &job, chunks_of(job.count, CAPPED_NUMBERS));
    return 0;
}

static void gather_rows(const float *from, int64_t width, const int64_t *rows, int64_t count, float *to) {
    for (int64_t i = 0; i < count; i++) memcpy(to + i * width, from + rows[i] * width, (size_t)width * sizeof(float));
}

static int write_logits(const model *m, const batch *b, const float *hidden, float *logits) {
    if (!b->logit_count) return 0;
    float *rows = scratch(FOR_LAYERS, (size_t)(b->logit_count * m->width) * sizeof(float));
    if (!rows) return 1;
    gather_rows(hidden, m->width, b->logit_rows, b->logit_count, rows);
    return logits_of(m, rows, b->logit_count, logits);
}

// ---- scores

typedef struct {
    const batch *b;
    const output *out;
    const float *logits;  // (rows, vocabulary) of the scored rows from `first` on
    int64_t first, vocabulary;
} score_job;

static float largest_of(const float *z, int64_t count) {
    float lanes[16], largest;
    int64_t i = 0;
    for (int j = 0; j < 16; j++) lanes[j] = z[0];
    for (; i + 16 <= count; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] = z[i + j] > lanes[j] ? z[i + j] : lanes[j];
    for (largest = lanes[0]; i < count; i++) largest = z[i] > largest ? z[i] : largest;
    for (int j = 0; j < 16; j++) largest = lanes[j] > largest ? lanes[j] : largest;
    return largest;
}

static int64_t rank_of(const float *z, int64_t count, int64_t target) {
    const float own = z[target];
    int64_t before = 0;
    for (int64_t i = 0; i < count; i++) before += z[i] > own;
    for (int64_t i = 0; i < target; i++) before += z[i] == own;
    return before + 1;
}

// ln p = z - largest - ln(sum exp(z - largest)), summed in float64; the targets behind one row
static void score_row(void *pointer, int64_t row) {
    const score_job *job = pointer;
    const batch *b = job->b;
    const float *z = job->logits + row * job->vocabulary;
    const double largest = largest_of(z, job->vocabulary);
    const double total = largest + log(sum_weights(z, 0, job->vocabulary, largest, 1));
    for (int64_t i = 0; i < b->score_count; i++) {
        if (b->score_rows[i] != job->first + row) continue;
        job->out->logprobs[i] = z[b->targets[i]] - total;
        job->out->ranks[i] = rank_of(z, job->vocabulary, b->targets[i]);
    }
}

static int score_targets(const model *m, const batch *b, const float *hidden, const output *out) {
    int64_t at_once = min_i64(SCORED_NUMBERS / m->vocabulary + 1, min_i64(64, b->scored_count));
    if (!b->scored_count) return 0;
    float *logits = scratch(FOR_LAYERS, (size_t)(at_once * (m->vocabulary + m->width)) * sizeof(float));
    if (!logits) return 1;
    float *rows = logits + at_once * m->vocabulary;
    for (int64_t first = 0; first < b->scored_count; first += at_once) {
        const int64_t count = min_i64(at_once, b->scored_count - first);
        gather_rows(hidden, m->width, b->scored_rows + first, count, rows);
        if (logits_of(m, rows, count, logits)) return 1;
        score_job job = {b, out, logits, first, m->vocabulary};
        pool_run(score_row, &job, count);
    }
    return 0;
}

// ---- checks

static int all_below(const int64_t *ids, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= limit) return 0;
    return 1;
}

// Every page up to a token's own must exist.
static forward_result check_place(const batch *b, int64_t token) {
    const placement *at = &b->at;
    const int64_t sequence = at->sequences[token], position = at->positions[token];
    if (sequence < 0 || sequence >= b->table_rows) return BAD_SEQUENCE;
    if (position < 0 || position >= at->table_width * at->page_size) return BAD_POSITION;
    const int32_t *pages = at->page_tables + sequence * at->table_width;
    for (int64_t page = 0; page <= position / at->page_size; page++)
        if (pages[page] < 0 || pages[page] >= b->cache.pages) return BAD_PAGE;
    return DONE;
}

static forward_result check(const model *m, const batch *b) {
    const int64_t tokens = b->at.tokens;
    if (!all_below(b->tokens, tokens, m->vocabulary)) return BAD_TOKEN;
    if (!all_below(b->targets, b->score_count, m->vocabulary)) return BAD_TOKEN;
    if (!all_below(b->kept, b->kept_count, tokens)) return BAD_ROW;
    for (int64_t token = 0; !m->recurrent && token < tokens; token++) {
        const forward_result result = check_place(b, token);
        if (result != DONE) return result;
    }
    return DONE;
}

EXPORT int nw_forward(const model *m, const batch *b, const output *out) {
    const forward_result checked = check(m, b);
    if (checked != DONE) return checked;
    float *x = scratch(FOR_FORWARD, (size_t)(b->at.tokens * m->width) * sizeof(float));
    if (!x || embed(m, b, x)) return NO_MEMORY;
    if (m->recurrent ? run_recurrent(m->recurrent, b->schedule, x) : run_transformer(m, b, x)) return NO_MEMORY;
    if (m->recurrent) keep_rows(b, m->width, x);
    if (out->hidden) memcpy(out->hidden, x, (size_t)(b->kept_count * m->width) * sizeof(float));
    return write_logits(m, b, x, out->logits) || score_targets(m, b, x, out) ? NO_MEMORY : DONE;
}
