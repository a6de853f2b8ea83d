// A head's positions are split into stretches of 256 (0 to 255, 256 to 511, ...). Each leaves a partial result, with
// its own largest score and sum, and these are added up in order (Milakov and Gimelshein 2018, 1805.02867). A token gets
// the same bits whatever the other tokens, the pages and the threads. Up to 60 queries, those of a few tokens of one
// sequence and of the heads that share a key head, share the reading of a split. With many such blocks each is one
// thread's work, which keeps a single partial result; with few, splits go to different threads.
#include "attention.h"

#include <math.h>
#include <stdatomic.h>

#include "elementwise.h"
#include "f32_kernels.h"
#include "pool.h"

#define BLOCK_QUERIES 60       // a multiple of what the kernels take at once
#define MAX_BLOCKS 512         // of a round
#define MAX_PARTIALS (1 << 20)  // numbers; blocks beyond wait for the next round
#define BLOCKS_A_THREAD 4      // from which on blocks are not divided
#define WORTH_SHARING 200000   // multiplications; below it waking threads costs more than they save

// Consecutive tokens of one sequence, with the query heads of one key head.
typedef struct {
    int64_t token, tokens, head, first_split, splits;
    int64_t offset;  // of its partials: (splits, tokens * group, padded_width + 2)
    _Atomic int64_t left;  // splits to be done
} query_block;

typedef struct {
    const attention *a;
    const f32_kernels *kernels;
    int whole;  // a chunk is a block, not a split
    query_block blocks[MAX_BLOCKS];
    int64_t count, max_splits, numbers, multiplications;
    float *partials;
    _Atomic int failed;
} attention_round;

static int64_t first_seen(const attention *a, int64_t token) {
    int64_t length = a->at->positions[token] + 1;
    return a->window && length > a->window ? length - a->window : 0;
}

static int64_t group_of(const attention *a) { return a->heads / a->kv_heads; }
static int64_t first_split(const attention *a, int64_t token) { return first_seen(a, token) / SPLIT; }
static int64_t last_split(const attention *a, int64_t token) { return a->at->positions[token] / SPLIT; }
static int64_t partial_numbers(const attention *a) { return padded_width(a->width) + 2; }

// Where in `pages` (keys or values) the group of eight positions begins that `position` is in.
static char *group_at(const attention *a, void *pages, int64_t sequence, int64_t head, int64_t position) {
    const placement *at = a->at;
    const int64_t page = at->page_tables[sequence * at->table_width + position / at->page_size];
    const int64_t row = head * at->page_size + position % at->page_size / 8 * 8;
    return (char *)pages + page * a->page_bytes + row * row_bytes(a->kv_type, a->width);
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

static void rope_token(const attention *a, int64_t position, float *heads) {
    const float *cosine = a->rope.cosine + position * a->rope.width, *sine = a->rope.sine + position * a->rope.width;
    for (int64_t h = 0, half = a->rope.width / 2; h < a->heads + a->kv_heads; h++)
        if (a->rope.interleaved) rope_pairs(cosine, sine, half, heads + h * a->width);
        else rope_head(cosine, sine, half, heads + h * a->width);
}

static void rope_and_store(const attention *a, const f32_kernels *kernels, int64_t token) {
    const int64_t position = a->at->positions[token], sequence = a->at->sequences[token], width = a->width;
    float *heads = a->qkv + token * (a->heads + 2 * a->kv_heads) * width;
    if (a->rope.cosine) rope_token(a, position, heads);
    for (int64_t h = 0; h < a->kv_heads; h++) {
        const float *key = heads + (a->heads + h) * width, *value = key + a->kv_heads * width;
        char *values = group_at(a, a->values, sequence, h, position);
        kernels->store_key(a->kv_type, key, width, group_at(a, a->keys, sequence, h, position), position % 8);
        kernels->store_value(a->kv_type, value, width, values + position % 8 * row_bytes(a->kv_type, width));
    }
}

#define TOKENS_A_CHUNK 8

static void store_chunk(void *pointer, int64_t chunk) {
    const attention_round *round = pointer;
    int64_t token = chunk * TOKENS_A_CHUNK, end = min_i64(token + TOKENS_A_CHUNK, round->a->at->tokens);
    for (; token < end; token++) rope_and_store(round->a, round->kernels, token);
}

// ---- one split for some queries

// What a thread needs for `queries` queries.
typedef struct {
    query *queries;
    float *scores, *partials, *states, *tile;  // partials and states only for whole blocks
} workspace;

static int find_workspace(const attention *a, int64_t queries, workspace *w) {
    const int64_t partials = queries * partial_numbers(a);
    const int64_t numbers = queries * SPLIT + 2 * partials + tile_numbers(a->width);
    w->scores = scratch(FOR_ATTENTION, (size_t)numbers * sizeof(float) + (size_t)queries * sizeof(query));
    if (!w->scores) return 1;
    w->partials = w->scores + queries * SPLIT;
    w->states = w->partials + partials;
    w->tile = w->states + partials;
    w->queries = (query *)(void *)(w->tile + tile_numbers(a->width));
    return 0;
}

// Leaves in `partials` what the block's queries get of a split, those that see some of it.
static void attend_to_split(const attention_round *round, const query_block *b, int64_t split, const workspace *w,
                            float *partials) {
    const attention *a = round->a;
    const int64_t group = group_of(a), first = split * SPLIT;
    split_job job = {
        .queries = w->queries, .start = SPLIT, .kv_type = a->kv_type, .width = a->width,
        .one_token = b->tokens == 1, .scale = a->scale, .softcap = a->softcap, .tile = w->tile,
    };
    for (int64_t n = 0; n < b->tokens * group; n++, partials += partial_numbers(a)) {
        const int64_t token = b->token + n / group, seen = first_seen(a, token) - first, from = seen > 0 ? seen : 0;
        const int64_t to = min_i64(a->at->positions[token] + 1 - first, SPLIT);
        const float *vector = a->qkv + (token * (a->heads + 2 * a->kv_heads) + b->head * group + n % group) * a->width;
        if (from >= to) continue;
        w->queries[job.count++] = (query){vector, from, to, w->scores + n * SPLIT, partials};
        job.start = min_i64(job.start, from / 8 * 8);
        if (to > job.end) job.end = (to + 7) / 8 * 8;
    }
    for (int64_t p = job.start; p < job.end; p += 8) {
        job.keys[p / 8] = group_at(a, a->keys, a->at->sequences[b->token], b->head, first + p);
        job.values[p / 8] = group_at(a, a->values, a->at->sequences[b->token], b->head, first + p);
    }
    if (job.count) round->kernels->attend_to_split(&job);
}

// ---- all splits of a block

static void begin_state(const attention *a, float *state) {
    memset(state, 0, (size_t)partial_numbers(a) * sizeof(float));
    state[padded_width(a->width)] = -INFINITY;
}

static void finish_query(const attention_round *round, const query_block *b, int64_t n, const float *state) {
    const attention *a = round->a;
    const int64_t group = group_of(a), token = b->token + n / group, head = b->head * group + n % group;
    float *y = a->y + (token * a->heads + head) * a->width;
    round->kernels->finish(state, a->width, a->sinks ? a->sinks + head : NULL, y);
}

static void attend_whole(const attention_round *round, const query_block *b, const workspace *w) {
    const attention *a = round->a;
    const int64_t group = group_of(a), queries = b->tokens * group, numbers = partial_numbers(a);
    for (int64_t n = 0; n < queries; n++) begin_state(a, w->states + n * numbers);
    for (int64_t split = b->first_split; split < b->first_split + b->splits; split++) {
        attend_to_split(round, b, split, w, w->partials);
        for (int64_t n = 0; n < queries; n++)
            if (split >= first_split(a, b->token + n / group) && split <= last_split(a, b->token + n / group))
                round->kernels->add_partial(w->partials + n * numbers, padded_width(a->width), w->states + n * numbers);
    }
    for (int64_t n = 0; n < queries; n++) finish_query(round, b, n, w->states + n * numbers);
}

static void add_up_splits(const attention_round *round, const query_block *b, float *state) {
    const attention *a = round->a;
    const int64_t group = group_of(a), queries = b->tokens * group, numbers = partial_numbers(a);
    void (*add)(const float *, int64_t, float *) = round->kernels->add_partial;
    for (int64_t n = 0; n < queries; n++) {
        const float *partial = round->partials + b->offset + n * numbers;
        const int64_t token = b->token + n / group, last = last_split(a, token);
        begin_state(a, state);
        for (int64_t split = first_split(a, token); split <= last; split++)
            add(partial + (split - b->first_split) * queries * numbers, padded_width(a->width), state);
        finish_query(round, b, n, state);
    }
}

static void attention_chunk(void *pointer, int64_t chunk) {
    attention_round *round = pointer;
    const attention *a = round->a;
    query_block *b = round->blocks + (round->whole ? chunk : chunk / round->max_splits);
    const int64_t index = round->whole ? 0 : chunk % round->max_splits, queries = b->tokens * group_of(a);
    workspace w;
    if (index >= b->splits) return;  // other blocks have more
    if (find_workspace(a, queries, &w)) {
        atomic_store(&round->failed, 1);
        return;
    }
    if (round->whole) {
        attend_whole(round, b, &w);
        return;
    }
    float *partials = round->partials + b->offset + index * queries * partial_numbers(a);
    attend_to_split(round, b, b->first_split + index, &w, partials);
    if (atomic_fetch_sub(&b->left, 1) == 1) add_up_splits(round, b, w.states);  // the last to be done
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

// How many tokens the block has that begins at a token: fewer where partials would fill the memory of a round.
static int64_t block_tokens(const attention *a, int whole, int64_t token) {
    const int64_t group = group_of(a), splits = last_split(a, token) + 2 - first_split(a, token);
    int64_t limit = BLOCK_QUERIES / group;
    if (!whole) limit = min_i64(limit, MAX_PARTIALS / (splits * group * partial_numbers(a)));
    return consecutive(a->at, token, limit);
}

static int many_blocks(const attention *a) {
    int64_t blocks = 0;
    for (int64_t token = 0; token < a->at->tokens; token += block_tokens(a, 1, token)) blocks += a->kv_heads;
    return nw_threads() == 1 || blocks >= BLOCKS_A_THREAD * nw_threads();
}

// The next blocks whose partials fit together in memory, from `token` and `head` on, which move.
static void fill(attention_round *round, int64_t *token, int64_t *head) {
    const attention *a = round->a;
    const int64_t group = group_of(a);
    round->count = round->max_splits = round->numbers = round->multiplications = 0;
    while (round->count < MAX_BLOCKS && *token < a->at->tokens) {
        const int64_t tokens = block_tokens(a, round->whole, *token), first = first_split(a, *token);
        const int64_t splits = last_split(a, *token + tokens - 1) + 1 - first;
        const int64_t numbers = round->whole ? 0 : splits * tokens * group * partial_numbers(a);
        if (round->count && round->numbers + numbers > MAX_PARTIALS) return;
        round->blocks[round->count++] = (query_block){*token, tokens, *head, first, splits, round->numbers, splits};
        round->numbers += numbers;
        const int64_t seen = a->at->positions[*token] + 1 - first_seen(a, *token);
        round->multiplications += 2 * tokens * group * a->width * seen;
        if (splits > round->max_splits) round->max_splits = splits;
        if (++*head < a->kv_heads) continue;
        *head = 0;
        *token += tokens;
    }
}

static void run(chunk_function work, attention_round *round, int64_t chunks, int shared) {
    if (shared) pool_run(work, round, chunks);
    else
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(round, chunk);
}

int attend(const attention *a) {
    attention_round round = {.a = a, .kernels = find_f32_kernels(), .whole = many_blocks(a)};
    run(store_chunk, &round, chunks_of(a->at->tokens, TOKENS_A_CHUNK), a->at->tokens > TOKENS_A_CHUNK);
    for (int64_t token = 0, head = 0; token < a->at->tokens && !round.failed;) {
        fill(&round, &token, &head);
        round.partials = scratch(FOR_PARTIALS, (size_t)round.numbers * sizeof(float));
        if (!round.partials) return 1;
        run(attention_chunk, &round, round.whole ? round.count : round.count * round.max_splits,
            round.multiplications >= WORTH_SHARING);
    }
    return round.failed;
}

EXPORT int nw_attend(const attention *a) { return attend(a); }
