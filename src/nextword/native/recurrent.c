// The tokens of any number of sequences through all layers of an RNN, an LSTM or a GRU, in one call.
//
// A layer's input product is one for all tokens. Then the sequences move on together, a token each at a time: one
// product for the states of all that still have tokens, and the gates. A token gets the same bits in any company.
// The structures are mirrored in recurrent.py.
#include <math.h>

#include "cpu.h"
#include "matrix.h"
#include "pool.h"
#include "elementwise.h"

#define CHUNK_UNITS 1024  // some microseconds; fewer are not worth sharing out

typedef enum { RNN = 0, LSTM = 1, GRU = 2 } cell_kind;

typedef struct {
    const float *input, *hidden;            // (gates * width, width)
    const float *input_bias, *hidden_bias;  // (gates * width,) or NULL
} layer;

typedef struct {
    int64_t kind, layers, width;
    const layer *each;
} network;

typedef struct {
    int64_t sequences, tokens, pages;
    const int64_t *first, *count;  // (sequences,): first token, how many; those with the most tokens come first
    const int64_t *source;         // (sequences,): page of the state before the first token; -1: zeros
    const int64_t *target;         // (tokens,): page that takes the state after a token; -1: none
    float *hidden, *cell;          // (layers, pages, width); cell NULL but for an LSTM
} schedule;

typedef struct {
    float *from_input;     // (tokens, gates * width)
    float *from_hidden;    // (sequences, gates * width)
    float *hidden, *cell;  // (sequences, width): where each sequence stands
} room;

static int64_t gates_of(int64_t kind) { return kind == RNN ? 1 : kind == LSTM ? 4 : 3; }

// ---- gates

typedef struct {
    const network *n;
    const schedule *s;
    const room *r;
    float *x;              // (tokens, width): takes the outputs
    float *hidden, *cell;  // (pages, width) of this layer
    int64_t time, units;   // units: of all sequences that have a token
} gate_job;

typedef struct {  // one sequence's
    const float *from_input, *from_hidden;
    float *hidden, *cell;
    int64_t width;
} unit_row;

static inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static void gates_portable(cell_kind kind, const unit_row *u, int64_t from, int64_t to) {
    const int64_t w = u->width;
    for (int64_t i = from; i < to; i++) {
        const float *a = u->from_input + i, *b = u->from_hidden + i;
        if (kind == RNN) u->hidden[i] = tanhf(a[0] + b[0]);
        else if (kind == LSTM) {
            float in = sigmoid(a[0] + b[0]) * tanhf(a[2 * w] + b[2 * w]);
            u->cell[i] = sigmoid(a[w] + b[w]) * u->cell[i] + in;
            u->hidden[i] = sigmoid(a[3 * w] + b[3 * w]) * tanhf(u->cell[i]);
        } else {
            float candidate = tanhf(a[2 * w] + sigmoid(a[0] + b[0]) * b[2 * w]);
            u->hidden[i] = candidate + sigmoid(a[w] + b[w]) * (u->hidden[i] - candidate);
        }
    }
}

#if NW_X86
INLINE AVX2 __m256 sigmoid8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(one, _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// 1 - 2 / (exp(2x) + 1), and near zero, where that would cancel, Cephes' tanhf: within 3 units in the last place.
INLINE AVX2 __m256 tanh8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), two = _mm256_set1_ps(2.0f);
    __m256 far = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(exp8(_mm256_mul_ps(two, x)), one)));
    __m256 square = _mm256_mul_ps(x, x), p = _mm256_set1_ps(-5.70498872745e-3f);
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(2.06390887954e-2f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(-5.37397155531e-2f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(1.33314422036e-1f));
    p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(-3.33332819422e-1f));
    __m256 near = _mm256_fmadd_ps(_mm256_mul_ps(p, square), x, x);
    return _mm256_blendv_ps(far, near, _mm256_cmp_ps(square, _mm256_set1_ps(0.625f * 0.625f), _CMP_LT_OQ));
}

// Eight floats, or as many as `left` says; the lanes behind them are zeros.
INLINE AVX2 __m256i lanes(int64_t left) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE AVX2 __m256 load(const float *p, int64_t left) {
    return left >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(left));
}

INLINE AVX2 void store(float *p, int64_t left, __m256 v) {
    if (left >= 8) _mm256_storeu_ps(p, v);
    else _mm256_maskstore_ps(p, lanes(left), v);
}

// Eight units from `i` on, or the `left` ones of a row that ends: all get the same instructions.
INLINE AVX2 void gates8(const cell_kind kind, const unit_row *u, int64_t i, int64_t left) {
    const float *a = u->from_input + i, *b = u->from_hidden + i;
    const int64_t second = u->width, third = 2 * second, fourth = 3 * second;
#define BOTH(gate) _mm256_add_ps(load(a + gate, left), load(b + gate, left))
    __m256 hidden;
    if (kind == RNN) hidden = tanh8(BOTH(0));
    else if (kind == LSTM) {
        __m256 in = _mm256_mul_ps(sigmoid8(BOTH(0)), tanh8(BOTH(third)));
        __m256 cell = _mm256_fmadd_ps(sigmoid8(BOTH(second)), load(u->cell + i, left), in);
        store(u->cell + i, left, cell);
        hidden = _mm256_mul_ps(sigmoid8(BOTH(fourth)), tanh8(cell));
    } else {
        __m256 candidate = tanh8(_mm256_fmadd_ps(sigmoid8(BOTH(0)), load(b + third, left), load(a + third, left)));
        __m256 change = _mm256_sub_ps(load(u->hidden + i, left), candidate);
        hidden = _mm256_fmadd_ps(sigmoid8(BOTH(second)), change, candidate);
    }
    store(u->hidden + i, left, hidden);
#undef BOTH
}

INLINE AVX2 void gates_of_kind(const cell_kind kind, const unit_row *u, int64_t from, int64_t to) {
    int64_t i = from;
    for (; i + 8 <= to; i += 8) gates8(kind, u, i, 8);
    if (i < to) gates8(kind, u, i, to - i);
}

AVX2 static void gates_avx2(cell_kind kind, const unit_row *u, int64_t from, int64_t to) {
    if (kind == RNN) gates_of_kind(RNN, u, from, to);
    else if (kind == LSTM) gates_of_kind(LSTM, u, from, to);
    else gates_of_kind(GRU, u, from, to);
}
#endif

// Units `from` to `to` of one sequence: the gates, then the new state to where it is read.
static void move_on(const gate_job *job, int64_t sequence, int64_t from, int64_t to) {
    const schedule *s = job->s;
    const room *r = job->r;
    const int64_t width = job->n->width, gates = gates_of(job->n->kind), at = sequence * width;
    const int64_t token = s->first[sequence] + job->time, page = s->target[token];
    unit_row u = {
        r->from_input + token * gates * width, r->from_hidden + at * gates, r->hidden + at, r->cell + at, width,
    };
#if NW_X86
    if (nw_level()) gates_avx2((cell_kind)job->n->kind, &u, from, to);
    else
#endif
        gates_portable((cell_kind)job->n->kind, &u, from, to);
    const size_t bytes = (size_t)(to - from) * sizeof(float);
    memcpy(job->x + token * width + from, u.hidden + from, bytes);
    if (page < 0) return;
    memcpy(job->hidden + page * width + from, u.hidden + from, bytes);
    if (job->cell) memcpy(job->cell + page * width + from, u.cell + from, bytes);
}

static void gate_chunk(void *pointer, int64_t chunk) {
    const gate_job *job = pointer;
    const int64_t width = job->n->width;
    int64_t unit = chunk * CHUNK_UNITS, end = unit + CHUNK_UNITS;
    if (end > job->units) end = job->units;
    while (unit < end) {
        const int64_t sequence = unit / width, from = unit % width;
        const int64_t to = from + end - unit < width ? from + end - unit : width;
        move_on(job, sequence, from, to);
        unit += to - from;
    }
}

// ---- layers

static void load_states(const schedule *s, const float *pages, int64_t width, float *states) {
    for (int64_t i = 0; i < s->sequences; i++) {
        const size_t bytes = (size_t)width * sizeof(float);
        if (s->source[i] < 0) memset(states + i * width, 0, bytes);
        else memcpy(states + i * width, pages + s->source[i] * width, bytes);
    }
}

static int through_layer(const network *n, int64_t index, const schedule *s, float *x, const room *r) {
    const layer *l = n->each + index;
    const int64_t width = n->width, rows = gates_of(n->kind) * width, offset = index * s->pages * width;
    const matrix input = {FLOAT32, rows, width, 0, l->input, l->input_bias};
    const matrix hidden = {FLOAT32, rows, width, 0, l->hidden, l->hidden_bias};
    gate_job job = {n, s, r, x, s->hidden + offset, s->cell ? s->cell + offset : NULL, 0, 0};
    load_states(s, job.hidden, width, r->hidden);
    if (job.cell) load_states(s, job.cell, width, r->cell);
    if (multiply_float(&input, x, s->tokens, r->from_input, 0)) return 1;
    int64_t active = s->sequences;
    for (; job.time < s->count[0]; job.time++) {
        while (s->count[active - 1] <= job.time) active--;
        if (multiply_float(&hidden, r->hidden, active, r->from_hidden, 0)) return 1;
        job.units = active * width;
        pool_run(gate_chunk, &job, (job.units + CHUNK_UNITS - 1) / CHUNK_UNITS);
    }
    return 0;
}

// x (tokens, width) is what the first layer reads and becomes what the last one leaves. Returns 0, or 1 when memory
// is short: then `x` and the pages written to are spoilt, and nothing else.
EXPORT int nw_recur(const network *n, const schedule *s, float *x) {
    const int64_t gates = gates_of(n->kind) * n->width, states = s->sequences * n->width;
    const int64_t numbers = (s->tokens + s->sequences) * gates + 2 * states;
    float *held = scratch(FOR_STEP, (size_t)numbers * sizeof(float));
    if (!held) return 1;
    room r = {.from_input = held};
    r.from_hidden = r.from_input + s->tokens * gates;
    r.hidden = r.from_hidden + s->sequences * gates;
    r.cell = r.hidden + states;
    for (int64_t index = 0; index < n->layers; index++)
        if (through_layer(n, index, s, x, &r)) return 1;
    return 0;
}
