// A mixture of experts (Shazeer et al. 2017, 1701.06538; Jiang et al. 2024, 2401.04088). Tokens are grouped by expert,
// so that the rows of an expert are read once, and those of an expert that no token chose are not read. A token's
// outputs are added in the order of its experts' numbers: its result does not depend on the other tokens.
#include "cpu.h"
#include "forward.h"
#include "pool.h"

#define NOT_CHOSEN (-1.0f)

typedef struct {
    float *probs, *shares;  // (tokens, count): the router's softmax; weight of a token's active experts, or NOT_CHOSEN
    float *inputs;          // (tokens, width): those of the tokens that chose an expert
    float *up, *active;     // (tokens, width of an expert or, with gates, twice that)
    float *outputs;         // (tokens, width)
    int64_t *rows;          // (tokens,): the tokens that chose an expert
} workspace;

static void softmax(float *x, int64_t count) {
    float largest = x[0], sum = 0;
    for (int64_t i = 1; i < count; i++) largest = x[i] > largest ? x[i] : largest;
    for (int64_t i = 0; i < count; i++) sum += x[i] = exp_f32(x[i] - largest, nw_exp_range);
    for (int64_t i = 0; i < count; i++) x[i] /= sum;
}

static int64_t most_likely(const float *probs, const float *shares, int64_t count) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++)
        if (shares[i] == NOT_CHOSEN && (best < 0 || probs[i] > probs[best])) best = i;
    return best;
}

static void choose(const experts *e, float *probs, float *shares) {
    float sum = 0;
    softmax(probs, e->count);
    for (int64_t i = 0; i < e->count; i++) shares[i] = NOT_CHOSEN;
    for (int64_t n = 0; n < e->active; n++) {
        const int64_t best = most_likely(probs, shares, e->count);
        sum += shares[best] = probs[best];
    }
    for (int64_t i = 0; e->normalize && i < e->count; i++)
        if (shares[i] != NOT_CHOSEN) shares[i] /= sum;
}

static int64_t gather(const experts *e, int64_t expert, const float *x, int64_t tokens, int64_t width, const workspace *w) {
    int64_t count = 0;
    for (int64_t token = 0; token < tokens; token++) {
        if (w->shares[token * e->count + expert] == NOT_CHOSEN) continue;
        memcpy(w->inputs + count * width, x + token * width, (size_t)width * sizeof(float));
        w->rows[count++] = token;
    }
    return count;
}

static int run_expert(const model *m, const experts *e, int64_t expert, int64_t count, const workspace *w, float *y) {
    if (multiply(e->up + expert, w->inputs, count, w->up, 0)) return 1;
    activate((activation_function)m->activation, (int)m->gated, w->up, count, e->width, w->active);
    if (multiply(e->down + expert, w->active, count, w->outputs, 0)) return 1;
    for (int64_t row = 0; row < count; row++) {
        const float share = w->shares[w->rows[row] * e->count + expert], *from = w->outputs + row * m->width;
        float *to = y + w->rows[row] * m->width;
        for (int64_t i = 0; i < m->width; i++) to[i] += share * from[i];
    }
    return 0;
}

static int allocate(const model *m, const experts *e, int64_t tokens, workspace *w) {
    const int64_t up = e->width * (m->gated ? 2 : 1);
    const int64_t numbers = tokens * (2 * e->count + 2 * m->width + up + e->width);
    float *memory = scratch(FOR_EXPERTS, (size_t)numbers * sizeof(float) + (size_t)tokens * sizeof(int64_t));
    if (!memory) return 1;
    w->rows = (int64_t *)memory;
    w->probs = (float *)(w->rows + tokens);
    w->shares = w->probs + tokens * e->count;
    w->inputs = w->shares + tokens * e->count;
    w->outputs = w->inputs + tokens * m->width;
    w->up = w->outputs + tokens * m->width;
    w->active = w->up + tokens * up;
    return 0;
}

int run_experts(const model *m, const experts *e, const float *x, int64_t tokens, float *y) {
    workspace w;
    if (allocate(m, e, tokens, &w) || multiply(&e->router, x, tokens, w.probs, 0)) return 1;
    for (int64_t token = 0; token < tokens; token++) choose(e, w.probs + token * e->count, w.shares + token * e->count);
    memset(y, 0, (size_t)(tokens * m->width) * sizeof(float));
    for (int64_t expert = 0; expert < e->count; expert++) {
        const int64_t count = gather(e, expert, x, tokens, m->width, &w);
        if (count && run_expert(m, e, expert, count, &w, y)) return 1;
    }
    return 0;
}
