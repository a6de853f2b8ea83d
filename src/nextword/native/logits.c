// Sampling: from a row of logits to the token drawn, its probability and the model's own log-probability.
//
// A token is where the cumulative distribution, over tokens by (logit descending, id ascending), passes a given number.
// That takes no sorted vocabulary: tokens are collected from the largest logit down, a band at a time, until the band
// that holds the answer is known; a histogram narrows that down to a few tokens, and those are sorted.
//
// A row is one thread's, and every operation on it is float64 in a fixed order: neither threads nor instruction sets
// nor the other rows change a bit.
#include <float.h>
#include <math.h>
#include <pthread.h>

#include "pool.h"
#include "softmax_f64.h"

#define BINS 256
#define SHORT 24  // tokens that are faster sorted than narrowed down

typedef struct {
    const float *raw;      // (width,) the model's own logits
    const void *adjusted;  // (width,) what is drawn from: float64 if `wide`, otherwise float32
    int64_t wide;
} logit_row;

typedef struct {
    double temperature, top_p, min_p, uniform;
    int64_t top_k, top;  // 0 keeps all; how many of the likeliest tokens are wanted
} draw_settings;

typedef struct {
    int64_t finite;  // 0: no distribution can be made of the row, and nothing below is set; -1: no memory
    int64_t token;
    double drawn;                 // the probability it was drawn with
    double largest, own_largest;  // logits
    double own_log_sum;           // ln p = logit - own_largest - own_log_sum
    double mass;                  // of the tokens kept, the likeliest one's weight being 1
    double edge_logit;            // kept: tokens of a larger logit, and of this one those with an id below `edge_id`
    int64_t edge_id;
} draw_result;

// ---- tokens in their order

typedef struct {
    double logit;
    int64_t id;
} edge;  // stands behind all tokens of a larger logit, and those of the same logit and a lower id

typedef struct {
    const void *z;
    int wide;
    int64_t width;
    double *peaks, largest, temperature, scale;
    double *logits, *weights;  // of the tokens collected last, in the order of their ids
    int32_t *ids;
} ranking;

INLINE double smaller(double a, double b) { return a < b ? a : b; }  // fmin would be a call
INLINE double larger(double a, double b) { return a > b ? a : b; }

static void rank_row(ranking *r, const void *z, int wide) {
    r->z = z, r->wide = wide, r->largest = find_peaks(z, wide, r->width, r->peaks);
}

static void set_temperature(ranking *r, double temperature) {
    r->temperature = temperature;
    r->scale = smaller(1 / temperature, DBL_MAX);  // not infinite: the largest logit's 0 stays 0
}

static double total_of(const ranking *r) { return sum_weights(r->z, r->wide, r->width, r->largest, r->scale); }

// Weigh the `count` tokens collected; returns the sum.
static double weigh(const ranking *r, int64_t count) {
    return find_weights(r->logits, count, r->largest, r->scale, r->weights);
}

static int64_t likeliest(const ranking *r) {
    int64_t i = 0;
    while (r->peaks[i] != r->largest) i++;
    for (i *= GROUP; logit_at(r->z, r->wide, i) != r->largest;) i++;
    return i;
}

// Append the tokens of the group at `start` from `low` to below `high` to the `count` collected.
INLINE int64_t collect_group(const ranking *r, int64_t start, double low, double high, int64_t count) {
    for (int64_t i = start; i < start + GROUP && i < r->width; i++) {
        const double logit = logit_at(r->z, r->wide, i);
        r->logits[count] = logit;
        r->ids[count] = (int32_t)i;
        count += (logit >= low) & (logit < high);
    }
    return count;
}

#if NW_X86
static uint64_t set_bits[256];  // of each byte: the numbers of its set bits, a byte each, the lowest first
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_set_bits(void) {
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0, found = 0; bit < 8; bit++)
            if (byte >> bit & 1) set_bits[byte] |= (uint64_t)bit << 8 * found++;
}

// The smallest float that is not below x: what a float is compared with in place of x.
static float float_up(double x) {
    const float f = (float)x;
    return f < x ? nextafterf(f, INFINITY) : f;
}

// The same for all groups of a row of float32 but a last one that is not whole. Writes up to 8 numbers too many.
AVX2 static int64_t collect_avx2(const ranking *r, double low, double high) {
    const __m256 floor = _mm256_set1_ps(float_up(low)), ceiling = _mm256_set1_ps(float_up(high));
    const __m256i steps = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int64_t count = 0;
    for (int64_t start = 0; start + GROUP <= r->width; start += GROUP) {
        if (r->peaks[start / GROUP] < low) continue;
        for (int64_t i = start; i < start + GROUP; i += 8) {
            const __m256 v = _mm256_loadu_ps((const float *)r->z + i);
            const __m256 in = _mm256_and_ps(_mm256_cmp_ps(v, floor, _CMP_GE_OQ), _mm256_cmp_ps(v, ceiling, _CMP_LT_OQ));
            const int found = _mm256_movemask_ps(in);
            const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)&set_bits[found]));
            const __m256 packed = _mm256_permutevar8x32_ps(v, order);
            _mm256_storeu_pd(r->logits + count, _mm256_cvtps_pd(_mm256_castps256_ps128(packed)));
            _mm256_storeu_pd(r->logits + count + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(packed, 1)));
            const __m256i ids = _mm256_add_epi32(_mm256_set1_epi32((int)i), _mm256_permutevar8x32_epi32(steps, order));
            _mm256_storeu_si256((__m256i *)(r->ids + count), ids);
            count += __builtin_popcount((unsigned)found);
        }
    }
    return count;
}
#endif

// The tokens before `end` whose logit is at least `low` and below `high`; returns how many.
static int64_t collect(const ranking *r, double low, double high, edge end) {
    int64_t count = 0, start = 0, kept = 0;
#if NW_X86
    if (!r->wide && nw_level()) {
        count = collect_avx2(r, low, high);
        start = r->width / GROUP * GROUP;
    }
#endif
    for (; start < r->width; start += GROUP)
        if (r->peaks[start / GROUP] >= low) count = collect_group(r, start, low, high, count);
    if (low > end.logit) return count;
    for (int64_t i = 0; i < count; i++) {
        const double logit = r->logits[kept] = r->logits[i];
        const int32_t id = r->ids[kept] = r->ids[i];
        kept += (logit > end.logit) | ((logit == end.logit) & (id < end.id));
    }
    return kept;
}

typedef struct {
    enum { MASS, SHARE, COUNT, END } of;
    double target, whole;
} goal;

typedef struct {
    edge token;
    double mass;  // of it and all before it
    int64_t count;
} boundary;

static int reached(const goal *g, double mass, int64_t count) {
    switch (g->of) {
        case MASS: return mass > g->target;
        case SHARE: return mass / g->whole >= g->target;
        case COUNT: return (double)count >= g->target;
        default: return 0;
    }
}

static void keep(ranking *r, int64_t to, int64_t from) {
    r->logits[to] = r->logits[from], r->weights[to] = r->weights[from], r->ids[to] = r->ids[from];
}

// Go to the bin of the `count` tokens collected, whose logits are from `bottom` to `top`, that reaches the goal, and
// leave its tokens alone; returns how many.
static int64_t narrow(ranking *r, int64_t count, double bottom, double top, const goal *g, boundary *p) {
    double masses[BINS] = {0};
    int64_t counts[BINS] = {0}, kept = 0;
    const double step = smaller(BINS / smaller(top - bottom, DBL_MAX), DBL_MAX);
#define BIN(i) ((int)smaller((top - r->logits[i]) * step, BINS - 1))
    int last = 0, bin = 0;
    for (int64_t i = 0; i < count; i++) {
        const int mine = BIN(i);
        masses[mine] += r->weights[i];
        counts[mine]++;
        last = mine > last ? mine : last;
    }
    for (; bin < last && !reached(g, p->mass + masses[bin], p->count + counts[bin]); bin++)
        p->mass += masses[bin], p->count += counts[bin];
    for (int64_t i = 0; i < count; i++)
        if (BIN(i) == bin) keep(r, kept++, i);
#undef BIN
    return kept;
}

// Sort by logit, the largest first; equal ones stay in the order of their ids. For few, or for what is all equal.
static void sort(ranking *r, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        const double logit = r->logits[i], weight = r->weights[i];
        const int32_t id = r->ids[i];
        int64_t j = i;
        for (; j > 0 && r->logits[j - 1] < logit; j--) keep(r, j, j - 1);
        r->logits[j] = logit, r->weights[j] = weight, r->ids[j] = id;
    }
}

// Walk through the `count` tokens collected, of which one reaches the goal, unless the last is the last of all.
static void walk(ranking *r, int64_t count, double bottom, double top, const goal *g, boundary *p) {
    for (int exact = 0; count > SHORT; exact = 1) {
        if (exact) {
            bottom = INFINITY, top = -INFINITY;
            for (int64_t i = 0; i < count; i++) bottom = smaller(r->logits[i], bottom), top = larger(r->logits[i], top);
        }
        const int64_t kept = narrow(r, count, bottom, top, g, p);
        if (exact && kept == count) break;  // equal logits, in the order of their ids
        count = kept;
    }
    sort(r, count);
    for (int64_t i = 0; i < count; i++) {  // rounding may leave the tokens a little short of what their band reached
        p->mass += r->weights[i], p->count++;
        p->token = (edge){r->logits[i], r->ids[i]};
        if (reached(g, p->mass, p->count)) return;
    }
}

// The first token at which the goal is reached, of those before `end`; or the last of them.
static boundary find(ranking *r, goal g, edge end) {
    // how deep the bands go, in temperatures below the largest logit; beyond the last nothing has any weight
    static const double depths[] = {1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 64, 128, 707};
    boundary p = {{r->largest, 0}, 0, 0};
    double high = INFINITY, last_low = 0, last_high = 0;
    for (size_t band = 0; band < sizeof depths / sizeof *depths && high > end.logit; band++) {
        double low = larger(r->largest - depths[band] * r->temperature, -DBL_MAX);
        low = larger(low, end.logit);
        const int64_t count = low < high ? collect(r, low, high, end) : 0;
        if (count) {
            const double mass = weigh(r, count);
            if (reached(&g, p.mass + mass, p.count + count)) {
                walk(r, count, low, smaller(high, r->largest), &g, &p);
                return p;
            }
            p.mass += mass, p.count += count, last_low = low, last_high = high;
        }
        high = smaller(low, high);
    }
    if (g.of == END) return p;
    const int64_t count = collect(r, last_low, last_high, end);
    p.token.logit = INFINITY;
    for (int64_t i = 0; i < count; i++)  // in the order of the ids: of the lowest logit the highest
        if (r->logits[i] <= p.token.logit) p.token = (edge){r->logits[i], r->ids[i]};
    return p;
}

// ---- rows

typedef struct {
    const logit_row *rows;
    const draw_settings *settings;
    draw_result *results;
    int32_t *top_ids;  // (rows, max_top), -1 behind the last
    int64_t max_top, width;
} draw_job;

static edge behind(edge token) { return (edge){token.logit, token.id + 1}; }

// What temperature and truncations leave of a row, whose weights sum to `total`, and the token drawn from it.
static void draw_token(ranking *r, const draw_settings *s, double total, draw_result *result) {
    edge end = {-INFINITY, 0};
    double mass = total;
    if (s->top_k) {
        const boundary p = find(r, (goal){COUNT, (double)s->top_k, 0}, end);
        end = behind(p.token), mass = p.mass;
    }
    if (s->top_p < 1) {
        const boundary p = find(r, (goal){SHARE, s->top_p, mass}, end);
        end = behind(p.token), mass = p.mass;
    }
    // a weight a little short of min_p, by half a unit in the last place of 1, is rounded up to it
    const double lowest = s->min_p > 0 ? r->largest + (log(s->min_p) - 0x1p-54) * r->temperature : -INFINITY;
    if (end.logit < lowest) {
        end = (edge){lowest, INT64_MAX};
        mass = find(r, (goal){END, 0, 0}, end).mass;
    }
    const boundary drawn = find(r, (goal){MASS, s->uniform * mass, 0}, end);
    r->logits[0] = drawn.token.logit;
    result->token = drawn.token.id;
    result->drawn = weigh(r, 1) / mass;
    result->mass = mass, result->edge_logit = end.logit, result->edge_id = end.id;
}

// The ids of the `wanted` likeliest tokens, in no order.
static void likeliest_ids(ranking *r, int64_t wanted, int32_t *ids, int64_t max_top) {
    for (int64_t i = 0; i < max_top; i++) ids[i] = -1;
    if (!wanted) return;
    const edge end = behind(find(r, (goal){COUNT, (double)wanted, 0}, (edge){-INFINITY, 0}).token);
    memcpy(ids, r->ids, sizeof *ids * (size_t)collect(r, end.logit, INFINITY, end));
}

static void draw_row(void *pointer, int64_t row) {
    const draw_job *job = pointer;
    const logit_row *logits = &job->rows[row];
    const draw_settings *s = &job->settings[row];
    draw_result *result = &job->results[row];
    const size_t capacity = (size_t)job->width + 8, groups = capacity / GROUP + 1;
    double *memory = scratch(FOR_SAMPLING, (2 * capacity + groups) * sizeof(double) + capacity * sizeof(int32_t));
    result->finite = memory ? 0 : -1;
    if (!memory) return;
    ranking r = {.width = job->width, .temperature = 1, .scale = 1};
    r.logits = memory, r.weights = memory + capacity, r.peaks = memory + 2 * capacity, r.ids = (int32_t *)(r.peaks + groups);
    rank_row(&r, logits->raw, 0);
    const double own = isfinite(r.largest) ? total_of(&r) : NAN;
    if (isnan(own)) return;  // one logit was
    result->own_largest = r.largest, result->own_log_sum = log(own);
    likeliest_ids(&r, s->top, job->top_ids + row * job->max_top, job->max_top);
    if (logits->adjusted) rank_row(&r, logits->adjusted, (int)logits->wide);
    if (!isfinite(r.largest)) return;
    result->finite = 1, result->largest = r.largest;
    if (s->temperature == 0) {
        result->token = likeliest(&r), result->drawn = 1;
        return;
    }
    set_temperature(&r, s->temperature);
    const int all = !s->top_k && (s->top_p < 1 || !(s->min_p > 0));  // whether it takes the sum over all tokens
    const int known = r.z == logits->raw && s->temperature == 1;
    draw_token(&r, s, known ? own : all ? total_of(&r) : 0, result);
}

// Draw a token from each row of logits, `width` of them; `top_ids` is (rows, max_top).
EXPORT void nw_draw(const logit_row *logits, const draw_settings *settings, int64_t rows, int64_t width,
                    draw_result *results, int32_t *top_ids, int64_t max_top) {
#if NW_X86
    pthread_once(&once, find_set_bits);
#endif
    draw_job job = {logits, settings, results, top_ids, max_top, width};
    pool_run(draw_row, &job, rows);
}
