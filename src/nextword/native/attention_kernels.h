// The kernels of attention.c: scores of keys, their softmax numerators, and the values so weighted, added to y.
#pragma once
#include <math.h>

#include "elementwise.h"

// A query, the positions of the current split that it sees (from <= p < to), and where its partial result goes.
typedef struct {
    const float *vector;
    int64_t from, to;
    float *partial, *scores;
} query;

static void scores_portable(const float *vector, const float *keys, int64_t count, int64_t width, float scale,
                            float *scores) {
    for (int64_t p = 0; p < count; p++) {
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += vector[i] * keys[p * width + i];
        scores[p] = sum * scale;
    }
}

// Scores become exp(score - largest), which of -infinity is 1e-38: no sum notices.
INLINE void exp_of(float *scores, const int count, float largest, const exp_range range, const int fused) {
    for (int i = 0; i < count; i++) scores[i] = exp_f32(scores[i] - largest, range, fused);
}

// The same for `count` scores, a multiple of eight, and their sum.
static float probs_portable(float *scores, int64_t count, float largest) {
    const exp_range range = nw_exp_range;
    float sum = 0;
    for (int64_t p = 0; p < count; p += 8) exp_of(scores + p, 8, largest, range, 0);
    for (int64_t p = 0; p < count; p++) sum += scores[p];
    return sum;
}

static void weighted_sum_portable(const float *probs, const float *values, int64_t count, int64_t width, float *y) {
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < width; i++) y[i] += probs[p] * values[p * width + i];
}

static float largest_portable(const float *scores, int64_t count) {
    float largest = -INFINITY;
    for (int64_t p = 0; p < count; p++)
        if (scores[p] > largest) largest = scores[p];  // a NaN is skipped here: its numerator becomes NaN
    return largest;
}

#if NW_X86
// Sums over the lanes of eight vectors at once: lane k of the result is the sum of v[k].
INLINE AVX2 __m256 add_lanes_of_eight(const __m256 *v) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

AVX2 static void scores_avx2(const float *vector, const float *keys, int64_t count, int64_t width, float scale,
                             float *scores) {
    for (int64_t p = 0; p < count; p += 8) {
        const float *key = keys + p * width;
        __m256 sums[8];
        for (int k = 0; k < 8; k++) sums[k] = _mm256_setzero_ps();
        for (int64_t i = 0; i < width; i += 8) {
            __m256 q = _mm256_loadu_ps(vector + i);
            for (int k = 0; k < 8; k++) sums[k] = _mm256_fmadd_ps(q, _mm256_loadu_ps(key + k * width + i), sums[k]);
        }
        _mm256_storeu_ps(scores + p, _mm256_mul_ps(add_lanes_of_eight(sums), _mm256_set1_ps(scale)));
    }
}

AVX2 static float largest_avx2(const float *scores, int64_t count) {
    __m256 largest = _mm256_set1_ps(-INFINITY);
    for (int64_t p = 0; p < count; p += 8)  // a NaN is skipped: then the second operand stays
        largest = _mm256_max_ps(_mm256_loadu_ps(scores + p), largest);
    float lanes[8];
    _mm256_storeu_ps(lanes, largest);
    return largest_portable(lanes, 8);
}

INLINE AVX2 float probs_of(float *scores, int64_t count, float largest, const int lanes) {
    const exp_range range = nw_exp_range;
    __m256 sums = _mm256_setzero_ps();
    int64_t p = 0;
    for (; p + lanes <= count; p += lanes) {
        exp_of(scores + p, lanes, largest, range, 1);
        for (int i = 0; i < lanes; i += 8) sums = _mm256_add_ps(sums, _mm256_loadu_ps(scores + p + i));
    }
    for (; p < count; p += 8) {
        exp_of(scores + p, 8, largest, range, 1);
        sums = _mm256_add_ps(sums, _mm256_loadu_ps(scores + p));
    }
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

AVX2 static float probs_avx2(float *scores, int64_t count, float largest) { return probs_of(scores, count, largest, 8); }

VNNI static float probs_avx512(float *scores, int64_t count, float largest) { return probs_of(scores, count, largest, 16); }

// `vectors` times eight columns of y
INLINE AVX2 void weighted_columns(const float *probs, const float *values, int64_t count, int64_t width, const int vectors,
                                  float *y) {
    __m256 sums[8];
    for (int k = 0; k < vectors; k++) sums[k] = _mm256_loadu_ps(y + 8 * k);
    for (int64_t p = 0; p < count; p++) {
        __m256 prob = _mm256_broadcast_ss(probs + p);
        for (int k = 0; k < vectors; k++)
            sums[k] = _mm256_fmadd_ps(prob, _mm256_loadu_ps(values + p * width + 8 * k), sums[k]);
    }
    for (int k = 0; k < vectors; k++) _mm256_storeu_ps(y + 8 * k, sums[k]);
}

AVX2 static void weighted_sum_avx2(const float *probs, const float *values, int64_t count, int64_t width, float *y) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) weighted_columns(probs, values + i, count, width, 8, y + i);
    for (; i + 32 <= width; i += 32) weighted_columns(probs, values + i, count, width, 4, y + i);
    for (; i < width; i += 8) weighted_columns(probs, values + i, count, width, 1, y + i);
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

VNNI static void scores_of_four(const query *q, const float *keys, int64_t start, int64_t count, int64_t width,
                                float scale) {
    for (int64_t p = 0; p < count; p += 8) {
        const float *key = keys + p * width;
        __m512 first[8], second[8];
        for (int k = 0; k < 8; k++) first[k] = second[k] = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 8) {
            __m512 a = two_halves(q[0].vector + i, q[1].vector + i), b = two_halves(q[2].vector + i, q[3].vector + i);
            for (int k = 0; k < 8; k++) {
                __m256d eight = _mm256_castps_pd(_mm256_loadu_ps(key + k * width + i));
                __m512 twice = _mm512_castpd_ps(_mm512_broadcast_f64x4(eight));
                first[k] = _mm512_fmadd_ps(a, twice, first[k]);
                second[k] = _mm512_fmadd_ps(b, twice, second[k]);
            }
        }
        store_two(first, scale, q[0].scores + start + p, q[1].scores + start + p);
        store_two(second, scale, q[2].scores + start + p, q[3].scores + start + p);
    }
}

// `vectors` times sixteen columns from `i` on
INLINE VNNI void weighted_columns_of_four(const query *q, const float *values, int64_t start, int64_t count,
                                          int64_t width, int64_t i, const int vectors) {
    __m512 sums[4][4];
    for (int n = 0; n < 4; n++)
        for (int k = 0; k < vectors; k++) sums[n][k] = _mm512_loadu_ps(q[n].partial + i + 16 * k);
    for (int64_t p = 0; p < count; p++) {
        __m512 value[4];
        for (int k = 0; k < vectors; k++) value[k] = _mm512_loadu_ps(values + p * width + i + 16 * k);
        for (int n = 0; n < 4; n++) {
            __m512 prob = _mm512_set1_ps(q[n].scores[start + p]);
            for (int k = 0; k < vectors; k++) sums[n][k] = _mm512_fmadd_ps(prob, value[k], sums[n][k]);
        }
    }
    for (int n = 0; n < 4; n++)
        for (int k = 0; k < vectors; k++) _mm512_storeu_ps(q[n].partial + i + 16 * k, sums[n][k]);
}

VNNI static void weighted_sum_of_four(const query *q, const float *values, int64_t start, int64_t count, int64_t width) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) weighted_columns_of_four(q, values, start, count, width, i, 4);
    for (; i + 16 <= width; i += 16) weighted_columns_of_four(q, values, start, count, width, i, 1);
    for (int n = 0; n < 4 && i < width; n++)
        weighted_columns(q[n].scores + start, values + i, count, width, 1, q[n].partial + i);
}
#endif


// ---- for some queries, with the instructions of a level

// Scores of positions `start` on, also those that a query does not see, which are overwritten.
static void scores(int level, const query *q, int64_t queries, const float *keys, int64_t start, int64_t count,
                   int64_t width, float scale) {
#if NW_X86
    for (; level == LEVEL_VNNI && queries >= 4; q += 4, queries -= 4) scores_of_four(q, keys, start, count, width, scale);
    for (; level && queries; q++, queries--) scores_avx2(q->vector, keys, count, width, scale, q->scores + start);
#endif
    for (; queries; q++, queries--) scores_portable(q->vector, keys, count, width, scale, q->scores + start);
}

// A query's scores become numerators of the softmax; its partial gets the largest score and the sum of the numerators,
// behind zeros to add values to.
static void softmax_partial(int level, const query *q, float softcap, int64_t width) {
    const int64_t start = q->from / 8 * 8, end = (q->to + 7) / 8 * 8, count = end - start;
    float *scores = q->scores, *largest = q->partial + width, *sum = largest + 1;
    for (int64_t p = q->from; softcap && p < q->to; p++) scores[p] = softcap * tanhf(scores[p] / softcap);
    for (int64_t p = start; p < q->from; p++) scores[p] = -INFINITY;
    for (int64_t p = q->to; p < end; p++) scores[p] = -INFINITY;
    memset(q->partial, 0, (size_t)width * sizeof(float));
#if NW_X86
    if (level) {
        *largest = largest_avx2(scores + start, count);
        *sum = (level == LEVEL_VNNI ? probs_avx512 : probs_avx2)(scores + start, count, *largest);
        return;
    }
#endif
    *largest = largest_portable(scores + start, count);
    *sum = probs_portable(scores + start, count, *largest);
}

// Adds the values of those positions from `start` to `end` that the query sees; `values` begin at `start`.
static void weighted_sum(int level, const query *q, const float *values, int64_t start, int64_t end, int64_t width) {
    int64_t from = q->from > start ? q->from : start, to = q->to < end ? q->to : end;
    if (from >= to) return;
    values += (from - start) * width;
#if NW_X86
    if (level) {
        weighted_sum_avx2(q->scores + from, values, to - from, width, q->partial);
        return;
    }
#endif
    weighted_sum_portable(q->scores + from, values, to - from, width, q->partial);
}

static void weighted_sums(int level, const query *q, int64_t queries, const float *values, int64_t start, int64_t end,
                          int64_t width) {
#if NW_X86
    for (; level == LEVEL_VNNI && queries >= 4; q += 4, queries -= 4) {
        int64_t from = start, to = end;  // what all four see
        for (int n = 0; n < 4; n++) {
            if (q[n].from > from) from = q[n].from;
            if (q[n].to < to) to = q[n].to;
        }
        if (from >= to) from = to = end;
        for (int n = 0; n < 4; n++) weighted_sum(level, q + n, values, start, from, width);
        if (from == to) continue;
        weighted_sum_of_four(q, values + (from - start) * width, from, to - from, width);
        for (int n = 0; n < 4; n++) weighted_sum(level, q + n, values + (to - start) * width, to, end, width);
    }
#endif
    for (; queries; q++, queries--) weighted_sum(level, q, values, start, end, width);
}
