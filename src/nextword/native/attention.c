// A head's positions are split into stretches of 256 (0 to 255, 256 to 511, ...). Each leaves a partial result, with its
// own largest score and sum, and these are combined in order (Milakov and Gimelshein 2018, 1805.02867). What a token
// gets is the same bits whatever the other tokens, the pages and the threads: splits can go to different threads, and up
// to 16 tokens of one sequence share the reading of a split, as do the query heads that share a key head.
#include "attention.h"

#include "attention_kernels.h"
#include "pool.h"

#define SPLIT 256
#define CACHED_KEYS 64   // keys or values that stay in the first-level cache while every query passes
#define BLOCK_TOKENS 16  // tokens that share the reading of a split
#define MAX_QUERIES 48   // queries whose scores a thread keeps at a time

// Up to BLOCK_TOKENS consecutive tokens of one sequence, with the query heads of one key head.
typedef struct {
    int64_t token, tokens, head, first_split, splits;
    int64_t offset;  // of its partials (splits, tokens * group, width + 2): weighted values, largest score, sum
} query_block;

#define MAX_BLOCKS 512
#define MAX_PARTIALS (8 << 20)  // numbers; blocks beyond wait for the next round

typedef struct {
    const attention *a;
    query_block blocks[MAX_BLOCKS];
    int64_t count, max_splits, numbers, multiplications;
    float *partials;
} attention_round;

int64_t kv_row_bytes(int64_t kv_type, int64_t width) {
    return kv_type == KV_Q8_0 ? width / 32 * 34 : width * (kv_type == KV_F16 ? 2 : 4);
}

static int64_t first_seen(const attention *a, int64_t token) {
    int64_t length = a->at->positions[token] + 1;
    return a->window && length > a->window ? length - a->window : 0;
}

static int64_t first_split(const attention *a, int64_t token) { return first_seen(a, token) / SPLIT; }
static int64_t last_split(const attention *a, int64_t token) { return a->at->positions[token] / SPLIT; }

// Where in `pages` (keys or values) the row of a position begins; `left` becomes how many its page still holds.
static void *row_at(const attention *a, void *pages, int64_t sequence, int64_t head, int64_t position, int64_t *left) {
    const placement *at = a->at;
    int64_t page = at->page_tables[sequence * at->table_width + position / at->page_size];
    int64_t offset = position % at->page_size;
    *left = at->page_size - offset;
    const int64_t row = (page * a->kv_heads + head) * at->page_size + offset;
    return (char *)pages + row * kv_row_bytes(a->kv_type, a->width);
}

// ---- rope, and the keys and values into their pages

// rope_head for pairs (2i, 2i + 1)
static void rope_pairs(const float *cosine, const float *sine, int64_t half, float *x) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] + b * sine[i];
        x[2 * i + 1] = b * cosine[half + i] + a * sine[half + i];
    }
}

static void rope_and_store(const attention *a, int64_t token) {
    const int64_t position = a->at->positions[token], sequence = a->at->sequences[token], width = a->width;
    float *heads = a->qkv + token * (a->heads + 2 * a->kv_heads) * width;
    const float *cosine = a->rope.cosine + position * a->rope.width, *sine = a->rope.sine + position * a->rope.width;
    for (int64_t h = 0, half = a->rope.width / 2; a->rope.cosine && h < a->heads + a->kv_heads; h++)
        if (a->rope.interleaved) rope_pairs(cosine, sine, half, heads + h * width);
        else rope_head(cosine, sine, sine + half, half, NULL, heads + h * width);
    for (int64_t h = 0, left; h < a->kv_heads; h++) {
        const float *key = heads + (a->heads + h) * width, *value = key + a->kv_heads * width;
        memcpy(row_at(a, a->keys, sequence, h, position, &left), key, (size_t)width * sizeof(float));
        memcpy(row_at(a, a->values, sequence, h, position, &left), value, (size_t)width * sizeof(float));
    }
}

#define TOKENS_A_CHUNK 8

static void store_chunk(void *pointer, int64_t chunk) {
    const attention *a = pointer;
    int64_t token = chunk * TOKENS_A_CHUNK, end = min_i64(token + TOKENS_A_CHUNK, a->at->tokens);
    for (; token < end; token++) rope_and_store(a, token);
}

// ---- one split for some queries

// Keys, and then values, pass once for all queries, a few at a time, which stay in the first-level cache.
static void attend_to_split(const attention *a, const query_block *b, int64_t split, const query *q, int64_t queries) {
    const int level = a->width % 8 ? PORTABLE : nw_level();
    const int64_t sequence = a->at->sequences[b->token], first = split * SPLIT;
    int64_t start = SPLIT, end = 0, count;
    for (int64_t n = 0; n < queries; n++) {
        if (q[n].from < start) start = q[n].from / 8 * 8;
        if (q[n].to > end) end = (q[n].to + 7) / 8 * 8;
    }
    for (int64_t p = start; p < end; p += count) {
        const float *keys = row_at(a, a->keys, sequence, b->head, first + p, &count);
        count = min_i64(min_i64(count, CACHED_KEYS), end - p);
        scores(level, q, queries, keys, p, count, a->width, a->scale);
    }
    for (int64_t n = 0; n < queries; n++) softmax_partial(level, q + n, a->softcap, a->width);
    for (int64_t p = start; p < end; p += count) {
        const float *values = row_at(a, a->values, sequence, b->head, first + p, &count);
        count = min_i64(min_i64(count, CACHED_KEYS), end - p);
        weighted_sums(level, q, queries, values, p, p + count, a->width);
    }
}

static void split_chunk(void *pointer, int64_t chunk) {
    const attention_round *round = pointer;
    const attention *a = round->a;
    const query_block *b = round->blocks + chunk / round->max_splits;
    const int64_t index = chunk % round->max_splits, split = b->first_split + index, first = split * SPLIT;
    const int64_t group = a->heads / a->kv_heads, width = a->width;
    float kept[MAX_QUERIES][SPLIT], *partial = round->partials + b->offset + index * b->tokens * group * (width + 2);
    query queries[MAX_QUERIES];
    int64_t count = 0;
    if (index >= b->splits) return;  // other blocks have more
    for (int64_t n = 0; n < b->tokens * group; n++, partial += width + 2) {
        const int64_t token = b->token + n / group, seen = first_seen(a, token) - first;
        const int64_t end = min_i64(a->at->positions[token] + 1 - first, SPLIT), from = seen > 0 ? seen : 0;
        if (from >= end) continue;
        const float *vector = a->qkv + (token * (a->heads + 2 * a->kv_heads) + b->head * group + n % group) * width;
        queries[count] = (query){vector, from, end, partial, kept[count]};
        if (++count < MAX_QUERIES) continue;
        attend_to_split(a, b, split, queries, count);
        count = 0;
    }
    if (count) attend_to_split(a, b, split, queries, count);
}

// ---- all splits of a query

// y = sum of exp(largest_i - largest) * partial_i, over the same sum of the sums, and exp(sink - largest)
static void combine(const float *partials, int64_t stride, int64_t splits, int64_t width, const float *sink, float *y) {
    float largest = sink ? *sink : -INFINITY, sum = 0;
    for (int64_t p = 0; p < splits; p++)
        if (partials[p * stride + width] > largest) largest = partials[p * stride + width];
    memset(y, 0, (size_t)width * sizeof(float));
    for (int64_t p = 0; p < splits; p++) {
        const float *partial = partials + p * stride;
        const float factor = splits == 1 && !sink ? 1.0f : expf(partial[width] - largest);
        sum += factor * partial[width + 1];
        for (int64_t i = 0; i < width; i++) y[i] += factor * partial[i];
    }
    if (sink) sum += expf(*sink - largest);
    for (int64_t i = 0; i < width; i++) y[i] /= sum;
}

static void combine_chunk(void *pointer, int64_t chunk) {
    const attention_round *round = pointer;
    const attention *a = round->a;
    const query_block *b = round->blocks + chunk;
    const int64_t group = a->heads / a->kv_heads, queries = b->tokens * group, stride = queries * (a->width + 2);
    for (int64_t n = 0; n < queries; n++) {
        const int64_t token = b->token + n / group, head = b->head * group + n % group, split = first_split(a, token);
        const float *partials = round->partials + b->offset + (split - b->first_split) * stride + n * (a->width + 2);
        combine(partials, stride, last_split(a, token) + 1 - split, a->width, a->sinks ? a->sinks + head : NULL,
                a->y + (token * a->heads + head) * a->width);
    }
}

// ---- query blocks: the work as the threads share it out

// How many tokens from this one on follow each other in one sequence, at most `limit`.
static int64_t consecutive(const placement *at, int64_t token, int64_t limit) {
    int64_t n = 1;
    while (n < limit && token + n < at->tokens && at->sequences[token + n] == at->sequences[token] &&
           at->positions[token + n] == at->positions[token] + n)
        n++;
    return n;
}

// The block that begins at a token: fewer than BLOCK_TOKENS where their partials would fill the memory of a round.
static query_block block_at(const attention *a, int64_t token, int64_t head) {
    const int64_t group = a->heads / a->kv_heads, first = first_split(a, token);
    const int64_t numbers_a_token = (last_split(a, token) + 2 - first) * group * (a->width + 2);
    const int64_t tokens = consecutive(a->at, token, min_i64(BLOCK_TOKENS, MAX_PARTIALS / numbers_a_token));
    return (query_block){token, tokens, head, first, last_split(a, token + tokens - 1) + 1 - first, 0};
}

// The next blocks whose partials fit together in memory, from `token` and `head` on, which move.
static void fill(attention_round *round, int64_t *token, int64_t *head) {
    const attention *a = round->a;
    const int64_t group = a->heads / a->kv_heads;
    round->count = round->max_splits = round->numbers = round->multiplications = 0;
    while (round->count < MAX_BLOCKS && *token < a->at->tokens) {
        query_block b = block_at(a, *token, *head);
        const int64_t numbers = b.splits * b.tokens * group * (a->width + 2);
        if (round->count && round->numbers + numbers > MAX_PARTIALS) return;
        b.offset = round->numbers;
        round->numbers += numbers;
        round->multiplications += b.tokens * group * a->width * (a->at->positions[*token] + 1 - first_seen(a, *token));
        round->blocks[round->count++] = b;
        if (b.splits > round->max_splits) round->max_splits = b.splits;
        if (++*head < a->kv_heads) continue;
        *head = 0;
        *token += b.tokens;
    }
}

#define WORTH_SHARING 40000  // multiplications; below it waking threads costs more than they save

static void run(chunk_function work, attention_round *round, int64_t chunks, int64_t multiplications) {
    if (multiplications >= WORTH_SHARING) pool_run(work, round, chunks);
    else
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(round, chunk);
}

int attend(const attention *a) {
    attention_round round = {.a = a};
    pool_run(store_chunk, (void *)a, (a->at->tokens + TOKENS_A_CHUNK - 1) / TOKENS_A_CHUNK);
    for (int64_t token = 0, head = 0; token < a->at->tokens;) {
        fill(&round, &token, &head);
        round.partials = scratch(FOR_ATTENTION, (size_t)round.numbers * sizeof(float));
        if (!round.partials) return 1;
        run(split_chunk, &round, round.count * round.max_splits, round.multiplications);
        run(combine_chunk, &round, round.count, round.numbers);
    }
    return 0;
}
