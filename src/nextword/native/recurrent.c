// The tokens of any number of sequences through all layers of an RNN, an LSTM or a GRU, in one call.
//
// A layer's input product is one for all tokens. Then the sequences advance together, a token each at a time: one
// product for the states of all that still have tokens, and the gates. A token gets the same bits in any company.
#include "recurrent.h"

#include "cpu.h"
#include "elementwise.h"
#include "f32_kernels.h"
#include "pool.h"

#define CHUNK_UNITS 1024  // some microseconds; fewer are not worth sharing out

typedef struct {
    float *from_input;     // (tokens, gates * width)
    float *from_hidden;    // (sequences, gates * width)
    float *hidden, *cell;  // (sequences, width): the current state of each sequence
} workspace;

static int64_t gates_of(int64_t kind) { return kind == RNN ? 1 : kind == LSTM ? 4 : 3; }

// ---- gates

typedef struct {
    const network *n;
    const schedule *s;
    const workspace *w;
    float *x;              // (tokens, width): takes the outputs
    float *hidden, *cell;  // (pages, width) of this layer
    int64_t time, units;   // units: of all sequences that have a token
} gate_job;

// Units `from` to `to` of one sequence: the gates, then the new state to where it is read.
static void advance(const gate_job *job, int64_t sequence, int64_t from, int64_t to) {
    const schedule *s = job->s;
    const workspace *w = job->w;
    const int64_t width = job->n->width, gates = gates_of(job->n->kind), at = sequence * width;
    const int64_t token = s->first[sequence] + job->time, page = s->target[token];
    const gate_row u = {
        w->from_input + token * gates * width, w->from_hidden + at * gates, w->hidden + at, w->cell + at, width,
    };
    find_f32_kernels()->advance_units((cell_kind)job->n->kind, &u, from, to);
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
        advance(job, sequence, from, to);
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

static int run_layer(const network *n, int64_t index, const schedule *s, float *x, const workspace *w) {
    const recurrent_layer *l = n->layers + index;
    const int64_t width = n->width, offset = index * s->pages * width;
    gate_job job = {n, s, w, x, s->hidden + offset, s->cell ? s->cell + offset : NULL, 0, 0};
    load_states(s, job.hidden, width, w->hidden);
    if (job.cell) load_states(s, job.cell, width, w->cell);
    if (multiply(&l->input, x, s->tokens, w->from_input, 0)) return 1;
    int64_t active = s->sequences;
    for (; job.time < s->count[0]; job.time++) {
        while (s->count[active - 1] <= job.time) active--;
        if (multiply(&l->hidden, w->hidden, active, w->from_hidden, 0)) return 1;
        job.units = active * width;
        pool_run(gate_chunk, &job, (job.units + CHUNK_UNITS - 1) / CHUNK_UNITS);
    }
    return 0;
}

int run_recurrent(const network *n, const schedule *s, float *x) {
    const int64_t gates = gates_of(n->kind) * n->width, states = s->sequences * n->width;
    const int64_t numbers = (s->tokens + s->sequences) * gates + 2 * states;
    float *memory = scratch(FOR_LAYERS, (size_t)numbers * sizeof(float));
    if (!memory) return 1;
    workspace w = {.from_input = memory};
    w.from_hidden = w.from_input + s->tokens * gates;
    w.hidden = w.from_hidden + s->sequences * gates;
    w.cell = w.hidden + states;
    for (int64_t index = 0; index < n->layer_count; index++)
        if (run_layer(n, index, s, x, &w)) return 1;
    return 0;
}
