// A head's positions are worked off in pieces of 256 (0 to 255, 256 to 511, ...), each with its own largest score and
// sum, which are then joined in order (Milakov and Gimelshein 2018, 1805.02867). What a token gets is the same bits
// whatever the other tokens, the pages and the threads: pieces can go to different threads, and up to 16 tokens of
// one sequence share the reading of a piece, as do the query heads that share a key head.
#include "attention.h"

#include <math.h>

#include "pool.h"
#include "elementwise.h"

#define PIECE 256
#define RUN 64       // keys or values that stay in the first-level cache while every query passes
#define BLOCK 16     // tokens that share the reading of a piece
#define TOGETHER 48  // queries whose scores a thread keeps at a time

// Up to BLOCK consecutive tokens of one sequence, with the query heads of one key head.
typedef struct {
    int64_t token, tokens, head, first_piece, pieces;
    int64_t part;  // where its parts begin: (pieces, tokens * group, width + 2): weighted values, largest score, sum
} strip;

#define STRIPS 512
#define PARTS (8 << 20)  // numbers; more strips than fit wait for the next round

typedef struct {
    const attention *a;
    strip strips[STRIPS];
    int64_t count, most_pieces, numbers, multiplications;
    float *parts;
} round_of_strips;

// A query, the positions of the current piece that it sees (from <= p < to), and where its part goes.
typedef struct {
    const float *query;
    int64_t from, to;
    float *part, *scores;
} reader;

static int64_t first_seen(const attention *a, int64_t token) {
    int64_t length = a->at->positions[token] + 1;
    return a->window && length > a->window ? length - a->window : 0;
}

static int64_t first_piece(const attention *a, int64_t token) { return first_seen(a, token) / PIECE; }
static int64_t last_piece(const attention *a, int64_t token) { return a->at->positions[token] / PIECE; }

static int64_t least(int64_t a, int64_t b, int64_t c) {
    int64_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

// Where in `stored` (keys or values) the row of a position begins; `left` becomes how many more its page holds.
static float *row_at(const attention *a, float *stored, int64_t sequence, int64_t head, int64_t position, int64_t *left) {
    const placement *at = a->at;
    int64_t page = at->page_tables[sequence * at->table_width + position / at->page_size];
    int64_t offset = position % at->page_size;
    *left = at->page_size - offset;
    return stored + ((page * a->kv + head) * at->page_size + offset) * a->width;
}

// ---- rotary embedding, and the keys and values into their pages

static void turn(float *head, const float *cosine, const float *sine, int64_t rotary) {
    for (int64_t i = 0, half = rotary / 2; i < half; i++) {
        float one = head[i], other = head[half + i];
        head[i] = one * cosine[i] + other * sine[i];
        head[half + i] = other * cosine[half + i] + one * sine[half + i];
    }
}

static void turn_and_store(const attention *a, int64_t token) {
    const int64_t position = a->at->positions[token], sequence = a->at->sequences[token], width = a->width;
    float *heads = a->qkv + token * (a->heads + 2 * a->kv) * width;
    for (int64_t h = 0; a->cosine && h < a->heads + a->kv; h++)
        turn(heads + h * width, a->cosine + position * a->rotary, a->sine + position * a->rotary, a->rotary);
    for (int64_t h = 0, left; h < a->kv; h++) {
        const float *key = heads + (a->heads + h) * width, *value = key + a->kv * width;
        memcpy(row_at(a, a->keys, sequence, h, position, &left), key, (size_t)width * sizeof(float));
        memcpy(row_at(a, a->values, sequence, h, position, &left), value, (size_t)width * sizeof(float));
    }
}

#define TOKENS_A_CHUNK 8

static void store_chunk(void *pointer, int64_t chunk) {
    const attention *a = pointer;
    int64_t token = chunk * TOKENS_A_CHUNK, end = token + TOKENS_A_CHUNK;
    for (; token < end && token < a->at->tokens; token++) turn_and_store(a, token);
}

// ---- kernels: scores of keys, their shares of the sum, and the values so weighted, added to y

static void scores_portable(const float *query, const float *keys, int64_t count, int64_t width, float scale, float *scores) {
    for (int64_t p = 0; p < count; p++) {
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += query[i] * keys[p * width + i];
        scores[p] = sum * scale;
    }
}

static float shares_portable(float *scores, int64_t count, float largest) {
    float sum = 0;
    for (int64_t p = 0; p < count; p++) sum += scores[p] = expf(scores[p] - largest);
    return sum;
}

static void mix_portable(const float *shares, const float *values, int64_t count, int64_t width, float *y) {
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < width; i++) y[i] += shares[p] * values[p * width + i];
}

static float largest_portable(const float *scores, int64_t count) {
    float largest = -INFINITY;
    for (int64_t p = 0; p < count; p++)
        if (scores[p] > largest) largest = scores[p];  // a NaN is passed over here: its share becomes NaN
    return largest;
}

#if NW_X86
// Sums over the lanes of eight vectors at once: lane k of the result is the sum of v[k].
INLINE AVX2 __m256 add_lanes_of_eight(const __m256 *v) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

AVX2 static void scores_avx2(const float *query, const float *keys, int64_t count, int64_t width, float scale, float *scores) {
    for (int64_t p = 0; p < count; p += 8) {
        const float *key = keys + p * width;
        __m256 sums[8];
        for (int k = 0; k < 8; k++) sums[k] = _mm256_setzero_ps();
        for (int64_t i = 0; i < width; i += 8) {
            __m256 q = _mm256_loadu_ps(query + i);
            for (int k = 0; k < 8; k++) sums[k] = _mm256_fmadd_ps(q, _mm256_loadu_ps(key + k * width + i), sums[k]);
        }
        _mm256_storeu_ps(scores + p, _mm256_mul_ps(add_lanes_of_eight(sums), _mm256_set1_ps(scale)));
    }
}

AVX2 static float largest_avx2(const float *scores, int64_t count) {
    __m256 largest = _mm256_set1_ps(-INFINITY);
    for (int64_t p = 0; p < count; p += 8)  // a NaN is passed over: then the second operand stays
        largest = _mm256_max_ps(_mm256_loadu_ps(scores + p), largest);
    float lanes[8];
    _mm256_storeu_ps(lanes, largest);
    return largest_portable(lanes, 8);
}

AVX2 static float shares_avx2(float *scores, int64_t count, float largest) {
    __m256 total = _mm256_setzero_ps(), offset = _mm256_set1_ps(largest);
    for (int64_t p = 0; p < count; p += 8) {  // exp8 of -infinity is 1e-38, which no sum notices
        __m256 share = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + p), offset));
        total = _mm256_add_ps(total, share);
        _mm256_storeu_ps(scores + p, share);
    }
    return add_lanes(total);
}

// `vectors` times eight columns of y
INLINE AVX2 void mix_columns(const float *shares, const float *values, int64_t count, int64_t width, const int vectors,
                             float *y) {
    __m256 sums[8];
    for (int k = 0; k < vectors; k++) sums[k] = _mm256_loadu_ps(y + 8 * k);
    for (int64_t p = 0; p < count; p++) {
        __m256 share = _mm256_broadcast_ss(shares + p);
        for (int k = 0; k < vectors; k++)
            sums[k] = _mm256_fmadd_ps(share, _mm256_loadu_ps(values + p * width + 8 * k), sums[k]);
    }
    for (int k = 0; k < vectors; k++) _mm256_storeu_ps(y + 8 * k, sums[k]);
}

AVX2 static void mix_avx2(const float *shares, const float *values, int64_t count, int64_t width, float *y) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) mix_columns(shares, values + i, count, width, 8, y + i);
    for (; i + 32 <= width; i += 32) mix_columns(shares, values + i, count, width, 4, y + i);
    for (; i < width; i += 8) mix_columns(shares, values + i, count, width, 1, y + i);
}

// Vectors of sixteen lanes, and four queries at once: each number goes through the same operations as above.

INLINE VNNI __m512 add_pairs(__m512 a, __m512 b) {  // what _mm256_hadd_ps does
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

INLINE VNNI void store_two(const __m512 *v, float scale, float *one, float *other) {
    __m512 a = add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
    __m512 b = add_pairs(add_pairs(v[4], v[5]), add_pairs(v[6], v[7]));
    __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    sums = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
    _mm_storeu_ps(one, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(other, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(one + 4, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(other + 4, _mm512_extractf32x4_ps(sums, 3));
}

INLINE VNNI __m512 two_halves(const float *low, const float *high) {
    __m512d both = _mm512_castpd256_pd512(_mm256_castps_pd(_mm256_loadu_ps(low)));
    return _mm512_castpd_ps(_mm512_insertf64x4(both, _mm256_castps_pd(_mm256_loadu_ps(high)), 1));
}

// exp8 for sixteen numbers
INLINE VNNI __m512 exp16(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

// As shares_avx2: the sum takes eight shares at a time.
VNNI static float shares_avx512(float *scores, int64_t count, float largest) {
    __m256 total = _mm256_setzero_ps();
    const __m512 offset = _mm512_set1_ps(largest);
    int64_t p = 0;
    for (; p + 16 <= count; p += 16) {
        __m512 share = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + p), offset));
        __m512d halves = _mm512_castps_pd(share);
        total = _mm256_add_ps(total, _mm512_castps512_ps256(share));
        total = _mm256_add_ps(total, _mm256_castpd_ps(_mm512_extractf64x4_pd(halves, 1)));
        _mm512_storeu_ps(scores + p, share);
    }
    for (; p < count; p += 8) {
        __m256 share = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + p), _mm256_set1_ps(largest)));
        total = _mm256_add_ps(total, share);
        _mm256_storeu_ps(scores + p, share);
    }
    return add_lanes(total);
}

VNNI static void scores_of_four(const reader *r, const float *keys, int64_t start, int64_t count, int64_t width, float scale) {
    for (int64_t p = 0; p < count; p += 8) {
        const float *key = keys + p * width;
        __m512 first[8], second[8];
        for (int k = 0; k < 8; k++) first[k] = second[k] = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 8) {
            __m512 q = two_halves(r[0].query + i, r[1].query + i), s = two_halves(r[2].query + i, r[3].query + i);
            for (int k = 0; k < 8; k++) {
                __m256d eight = _mm256_castps_pd(_mm256_loadu_ps(key + k * width + i));
                __m512 twice = _mm512_castpd_ps(_mm512_broadcast_f64x4(eight));
                first[k] = _mm512_fmadd_ps(q, twice, first[k]);
                second[k] = _mm512_fmadd_ps(s, twice, second[k]);
            }
        }
        store_two(first, scale, r[0].scores + start + p, r[1].scores + start + p);
        store_two(second, scale, r[2].scores + start + p, r[3].scores + start + p);
    }
}

// `vectors` times sixteen columns from `i` on
INLINE VNNI void mix_columns_of_four(const reader *r, const float *values, int64_t start, int64_t count, int64_t width,
                                     int64_t i, const int vectors) {
    __m512 sums[4][4];
    for (int q = 0; q < 4; q++)
        for (int k = 0; k < vectors; k++) sums[q][k] = _mm512_loadu_ps(r[q].part + i + 16 * k);
    for (int64_t p = 0; p < count; p++) {
        __m512 value[4];
        for (int k = 0; k < vectors; k++) value[k] = _mm512_loadu_ps(values + p * width + i + 16 * k);
        for (int q = 0; q < 4; q++) {
            __m512 share = _mm512_set1_ps(r[q].scores[start + p]);
            for (int k = 0; k < vectors; k++) sums[q][k] = _mm512_fmadd_ps(share, value[k], sums[q][k]);
        }
    }
    for (int q = 0; q < 4; q++)
        for (int k = 0; k < vectors; k++) _mm512_storeu_ps(r[q].part + i + 16 * k, sums[q][k]);
}

VNNI static void mix_of_four(const reader *r, const float *values, int64_t start, int64_t count, int64_t width) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) mix_columns_of_four(r, values, start, count, width, i, 4);
    for (; i + 16 <= width; i += 16) mix_columns_of_four(r, values, start, count, width, i, 1);
    for (int q = 0; q < 4 && i < width; q++)
        mix_columns(r[q].scores + start, values + i, count, width, 1, r[q].part + i);
}
#endif

// ---- one piece for some queries

// Scores of positions `start` on for some queries; also those that a query does not see, which are overwritten.
static void score(int level, const reader *r, int64_t queries, const float *keys, int64_t start, int64_t count,
                  const attention *a) {
#if NW_X86
    for (; level == LEVEL_VNNI && queries >= 4; r += 4, queries -= 4)
        scores_of_four(r, keys, start, count, a->width, a->scale);
    for (; level && queries; r++, queries--) scores_avx2(r->query, keys, count, a->width, a->scale, r->scores + start);
#endif
    for (; queries; r++, queries--) scores_portable(r->query, keys, count, a->width, a->scale, r->scores + start);
}

static void cap(float softcap, float *scores, int64_t count) {
    for (int64_t p = 0; p < count; p++) scores[p] = softcap * tanhf(scores[p] / softcap);
}

// Scores become shares; the part gets the largest score and the sum of the shares, behind zeros to add values to.
static void share(int level, const reader *r, const attention *a) {
    const int64_t start = r->from / 8 * 8, end = (r->to + 7) / 8 * 8, count = end - start;
    float *scores = r->scores, *largest = r->part + a->width, *sum = largest + 1;
    if (a->softcap) cap(a->softcap, scores + r->from, r->to - r->from);
    for (int64_t p = start; p < r->from; p++) scores[p] = -INFINITY;
    for (int64_t p = r->to; p < end; p++) scores[p] = -INFINITY;
    memset(r->part, 0, (size_t)a->width * sizeof(float));
#if NW_X86
    if (level) {
        *largest = largest_avx2(scores + start, count);
        *sum = (level == LEVEL_VNNI ? shares_avx512 : shares_avx2)(scores + start, count, *largest);
        return;
    }
#endif
    *largest = largest_portable(scores + start, count);
    *sum = shares_portable(scores + start, count, *largest);
}

// Adds the values of those positions from `start` to `end` that the query sees; `values` begin at `start`.
static void mix(int level, const reader *r, const float *values, int64_t start, int64_t end, int64_t width) {
    int64_t from = r->from > start ? r->from : start, to = r->to < end ? r->to : end;
    if (from >= to) return;
    values += (from - start) * width;
#if NW_X86
    if (level) {
        mix_avx2(r->scores + from, values, to - from, width, r->part);
        return;
    }
#endif
    mix_portable(r->scores + from, values, to - from, width, r->part);
}

static void mix_all(int level, const reader *r, int64_t queries, const float *values, int64_t start, int64_t end,
                    int64_t width) {
#if NW_X86
    for (; level == LEVEL_VNNI && queries >= 4; r += 4, queries -= 4) {
        int64_t from = start, to = end;  // what all four see
        for (int q = 0; q < 4; q++) {
            if (r[q].from > from) from = r[q].from;
            if (r[q].to < to) to = r[q].to;
        }
        if (from >= to) from = to = end;
        for (int q = 0; q < 4; q++) mix(level, r + q, values, start, from, width);
        if (from == to) continue;
        mix_of_four(r, values + (from - start) * width, from, to - from, width);
        for (int q = 0; q < 4; q++) mix(level, r + q, values + (to - start) * width, to, end, width);
    }
#endif
    for (; queries; r++, queries--) mix(level, r, values, start, end, width);
}

// Keys, and then values, pass once for all queries, a few at a time, which stay in the first-level cache.
static void attend_to_piece(const attention *a, const strip *s, int64_t piece, const reader *r, int64_t queries) {
    const int level = a->width % 8 ? PORTABLE : nw_level();
    const int64_t sequence = a->at->sequences[s->token], first = piece * PIECE;
    int64_t start = PIECE, end = 0, run;
    for (int64_t q = 0; q < queries; q++) {
        if (r[q].from < start) start = r[q].from / 8 * 8;
        if (r[q].to > end) end = (r[q].to + 7) / 8 * 8;
    }
    for (int64_t p = start; p < end; p += run) {
        const float *keys = row_at(a, a->keys, sequence, s->head, first + p, &run);
        run = least(run, RUN, end - p);
        score(level, r, queries, keys, p, run, a);
    }
    for (int64_t q = 0; q < queries; q++) share(level, r + q, a);
    for (int64_t p = start; p < end; p += run) {
        const float *values = row_at(a, a->values, sequence, s->head, first + p, &run);
        run = least(run, RUN, end - p);
        mix_all(level, r, queries, values, p, p + run, a->width);
    }
}

// ---- strips: the work as the threads share it out

static void piece_chunk(void *pointer, int64_t chunk) {
    const round_of_strips *all = pointer;
    const attention *a = all->a;
    const strip *s = all->strips + chunk / all->most_pieces;
    const int64_t piece = chunk % all->most_pieces, group = a->heads / a->kv, width = a->width;
    const int64_t first = (s->first_piece + piece) * PIECE;
    float scores[TOGETHER][PIECE], *part = all->parts + s->part + piece * s->tokens * group * (width + 2);
    reader readers[TOGETHER];
    int64_t queries = 0;
    if (piece >= s->pieces) return;  // other strips have more
    for (int64_t q = 0; q < s->tokens * group; q++, part += width + 2) {
        const int64_t token = s->token + q / group, seen = first_seen(a, token) - first;
        const int64_t end = least(a->at->positions[token] + 1 - first, PIECE, PIECE), from = seen > 0 ? seen : 0;
        if (from >= end) continue;
        const float *query = a->qkv + (token * (a->heads + 2 * a->kv) + s->head * group + q % group) * width;
        readers[queries] = (reader){query, from, end, part, scores[queries]};
        if (++queries < TOGETHER) continue;
        attend_to_piece(a, s, s->first_piece + piece, readers, queries);
        queries = 0;
    }
    if (queries) attend_to_piece(a, s, s->first_piece + piece, readers, queries);
}

// y = sum of exp(largest_i - largest) * part_i, over the same sum of the sums
static void join(const attention *a, const float *parts, int64_t stride, int64_t pieces, float *y) {
    const int64_t width = a->width;
    float largest = -INFINITY, sum = 0;
    for (int64_t p = 0; p < pieces; p++)
        if (parts[p * stride + width] > largest) largest = parts[p * stride + width];
    memset(y, 0, (size_t)width * sizeof(float));
    for (int64_t p = 0; p < pieces; p++) {
        const float *part = parts + p * stride;
        float share = pieces == 1 ? 1.0f : expf(part[width] - largest);
        sum += share * part[width + 1];
        for (int64_t i = 0; i < width; i++) y[i] += share * part[i];
    }
    for (int64_t i = 0; i < width; i++) y[i] /= sum;
}

static void join_chunk(void *pointer, int64_t chunk) {
    const round_of_strips *all = pointer;
    const attention *a = all->a;
    const strip *s = all->strips + chunk;
    const int64_t group = a->heads / a->kv, queries = s->tokens * group, stride = queries * (a->width + 2);
    for (int64_t q = 0; q < queries; q++) {
        const int64_t token = s->token + q / group, piece = first_piece(a, token);
        const float *parts = all->parts + s->part + (piece - s->first_piece) * stride + q * (a->width + 2);
        float *y = a->y + (token * a->heads + s->head * group + q % group) * a->width;
        join(a, parts, stride, last_piece(a, token) + 1 - piece, y);
    }
}

// How many tokens from this one on follow each other in one sequence, `most` at the most.
static int64_t consecutive(const placement *at, int64_t token, int64_t most) {
    int64_t n = 1;
    while (n < most && token + n < at->tokens && at->sequences[token + n] == at->sequences[token] &&
           at->positions[token + n] == at->positions[token] + n)
        n++;
    return n;
}

// The strip that begins at a token. It gets fewer tokens where the parts of BLOCK would fill the memory of a round.
static strip strip_at(const attention *a, int64_t token, int64_t head) {
    const int64_t group = a->heads / a->kv, first = first_piece(a, token);
    const int64_t part_numbers = (last_piece(a, token) + 2 - first) * group * (a->width + 2);
    const int64_t tokens = consecutive(a->at, token, least(BLOCK, PARTS / part_numbers, BLOCK));
    return (strip){token, tokens, head, first, last_piece(a, token + tokens - 1) + 1 - first, 0};
}

// The next strips whose parts fit together in memory, from `token` and `head` on, which move.
static void fill(round_of_strips *all, int64_t *token, int64_t *head) {
    const attention *a = all->a;
    all->count = all->most_pieces = all->numbers = all->multiplications = 0;
    while (all->count < STRIPS && *token < a->at->tokens) {
        strip s = strip_at(a, *token, *head);
        const int64_t numbers = s.pieces * s.tokens * (a->heads / a->kv) * (a->width + 2);
        if (all->count && all->numbers + numbers > PARTS) return;
        s.part = all->numbers;
        all->numbers += numbers;
        all->multiplications += s.tokens * (a->heads / a->kv) * a->width * (a->at->positions[*token] + 1 - first_seen(a, *token));
        all->strips[all->count++] = s;
        if (s.pieces > all->most_pieces) all->most_pieces = s.pieces;
        if (++*head < a->kv) continue;
        *head = 0;
        *token += s.tokens;
    }
}

#define WORTH_SHARING 40000  // multiplications; below it waking threads costs more than they save

static void share_out(chunk_function work, round_of_strips *all, int64_t chunks, int64_t multiplications) {
    if (multiplications >= WORTH_SHARING) pool_run(work, all, chunks);
    else
        for (int64_t chunk = 0; chunk < chunks; chunk++) work(all, chunk);
}

int attend(const attention *a) {
    round_of_strips all = {.a = a};
    pool_run(store_chunk, (void *)a, (a->at->tokens + TOKENS_A_CHUNK - 1) / TOKENS_A_CHUNK);
    for (int64_t token = 0, head = 0; token < a->at->tokens;) {
        fill(&all, &token, &head);
        all.parts = scratch(FOR_ATTENTION, (size_t)all.numbers * sizeof(float));
        if (!all.parts) return 1;
        share_out(piece_chunk, &all, all.count * all.most_pieces, all.multiplications);
        share_out(join_chunk, &all, all.count, all.numbers);
    }
    return 0;
}
