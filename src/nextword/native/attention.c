// A head's positions are worked off in pieces of 256, each with its own largest score and sum, which are then joined
// in order (Milakov and Gimelshein 2018, 1805.02867): pieces can go to different threads, and the result is
// the same bits whatever the threads and the batch. The query heads that share a key head stay together, so that
// keys and values come from memory once.
#include "attention.h"

#include <math.h>

#include "pool.h"
#include "vectors.h"

#define PIECE 256
#define TOGETHER 8  // query heads whose scores a thread keeps at a time

typedef struct {
    const attention *a;
    int64_t most_pieces;
    float *parts;  // (batch, kv, most_pieces, group, width + 2): weighted values, largest score, sum
} attention_job;

static int64_t first_seen(const attention *a, int64_t row) {
    int64_t length = a->lengths[row] + 1;
    return a->window && length > a->window ? length - a->window : 0;
}

static void turn(float *head, const float *cosine, const float *sine, int64_t rotary) {
    for (int64_t i = 0, half = rotary / 2; i < half; i++) {
        float one = head[i], other = head[half + i];
        head[i] = one * cosine[i] + other * sine[i];
        head[half + i] = other * cosine[half + i] + one * sine[half + i];
    }
}

static void turn_and_store(const attention *a, int64_t row) {
    const int64_t at = a->lengths[row], width = a->width;
    float *heads = a->qkv + row * (a->heads + 2 * a->kv) * width;
    for (int64_t h = 0; a->cosine && h < a->heads + a->kv; h++)
        turn(heads + h * width, a->cosine + at * a->rotary, a->sine + at * a->rotary, a->rotary);
    for (int64_t h = 0; h < a->kv; h++) {
        int64_t stored = ((row * a->kv + h) * a->capacity + at) * width;
        memcpy(a->keys + stored, heads + (a->heads + h) * width, (size_t)width * sizeof(float));
        memcpy(a->values + stored, heads + (a->heads + a->kv + h) * width, (size_t)width * sizeof(float));
    }
}

// ---- one piece: scores, their largest, exp, and the sum of the values so weighted

static void scores_portable(const float *query, const float *keys, int64_t count, int64_t width, float *scores) {
    for (int64_t p = 0; p < count; p++) {
        float sum = 0;
        for (int64_t i = 0; i < width; i++) sum += query[i] * keys[p * width + i];
        scores[p] = sum;
    }
}

static float shares_portable(float *scores, int64_t count, float largest) {
    float sum = 0;
    for (int64_t p = 0; p < count; p++) sum += scores[p] = expf(scores[p] - largest);
    return sum;
}

static void mix_portable(const float *shares, const float *values, int64_t count, int64_t width, float *y) {
    memset(y, 0, (size_t)width * sizeof(float));
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < width; i++) y[i] += shares[p] * values[p * width + i];
}

#if NW_X86
// Sums over the lanes of eight vectors at once: lane k of the result is the sum of v[k].
INLINE AVX2 __m256 add_lanes_of_eight(const __m256 *v) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// `scores` has room for whole vectors of eight; what lies beyond `count` becomes -infinity.
AVX2 static void scores_avx2(const float *query, const float *keys, int64_t count, int64_t width, float *scores) {
    int64_t p = 0;
    for (; p + 8 <= count; p += 8) {
        const float *key = keys + p * width;
        __m256 sums[8];
        for (int k = 0; k < 8; k++) sums[k] = _mm256_setzero_ps();
        for (int64_t i = 0; i < width; i += 8) {
            __m256 q = _mm256_loadu_ps(query + i);
            for (int k = 0; k < 8; k++) sums[k] = _mm256_fmadd_ps(q, _mm256_loadu_ps(key + k * width + i), sums[k]);
        }
        _mm256_storeu_ps(scores + p, add_lanes_of_eight(sums));
    }
    if (p == count) return;
    __m256 sums[8];
    for (int k = 0; k < 8; k++) sums[k] = _mm256_setzero_ps();
    for (int64_t k = 0; k < count - p; k++)
        for (int64_t i = 0; i < width; i += 8)
            sums[k] = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), _mm256_loadu_ps(keys + (p + k) * width + i), sums[k]);
    _mm256_storeu_ps(scores + p, add_lanes_of_eight(sums));
    for (int64_t k = count; k < p + 8; k++) scores[k] = -INFINITY;
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

AVX2 static void mix_avx2(const float *shares, const float *values, int64_t count, int64_t width, float *y) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) {
        __m256 sums[8];
        for (int k = 0; k < 8; k++) sums[k] = _mm256_setzero_ps();
        for (int64_t p = 0; p < count; p++) {
            __m256 share = _mm256_broadcast_ss(shares + p);
            const float *value = values + p * width + i;
            for (int k = 0; k < 8; k++) sums[k] = _mm256_fmadd_ps(share, _mm256_loadu_ps(value + 8 * k), sums[k]);
        }
        for (int k = 0; k < 8; k++) _mm256_storeu_ps(y + i + 8 * k, sums[k]);
    }
    for (; i < width; i += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t p = 0; p < count; p++)
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(shares + p), _mm256_loadu_ps(values + p * width + i), sum);
        _mm256_storeu_ps(y + i, sum);
    }
}
#endif

static float largest_of(const float *scores, int64_t count) {
    float largest = -INFINITY;
    for (int64_t p = 0; p < count; p++)
        if (scores[p] > largest) largest = scores[p];  // a NaN is passed over here: its share becomes NaN
    return largest;
}

// `to`: (group, width + 2), see attention_job
static void piece(const attention *a, const float *queries, const float *keys, const float *values, int64_t count,
                  int64_t group, float *to) {
    float scores[TOGETHER][PIECE];
    const int64_t width = a->width;
#if NW_X86
    const int wide = nw_level() && width % 8 == 0;
#endif
    for (int64_t from = 0; from < group; from += TOGETHER) {
        int64_t heads = group - from < TOGETHER ? group - from : TOGETHER;
        // Keys pass once for all heads, a few at a time, and stay in the first-level cache.
        for (int64_t p = 0; p < count; p += 32)
            for (int64_t h = 0; h < heads; h++) {
                const float *query = queries + (from + h) * width;
                int64_t some = count - p < 32 ? count - p : 32;
#if NW_X86
                if (wide) {
                    scores_avx2(query, keys + p * width, some, width, scores[h] + p);
                    continue;
                }
#endif
                scores_portable(query, keys + p * width, some, width, scores[h] + p);
            }
        for (int64_t h = 0; h < heads; h++) {
            float *part = to + (from + h) * (width + 2), *mine = scores[h];
            for (int64_t p = 0; p < count; p++) {
                mine[p] *= a->scale;
                if (a->softcap) mine[p] = a->softcap * tanhf(mine[p] / a->softcap);
            }
            part[width] = largest_of(mine, count);
#if NW_X86
            if (wide) {
                part[width + 1] = shares_avx2(mine, count, part[width]);
                mix_avx2(mine, values, count, width, part);
                continue;
            }
#endif
            part[width + 1] = shares_portable(mine, count, part[width]);
            mix_portable(mine, values, count, width, part);
        }
    }
}

static void attention_chunk(void *pointer, int64_t chunk) {
    const attention_job *job = pointer;
    const attention *a = job->a;
    const int64_t head = chunk / job->most_pieces % a->kv, row = chunk / job->most_pieces / a->kv;
    const int64_t group = a->heads / a->kv, start = first_seen(a, row) + chunk % job->most_pieces * PIECE;
    int64_t count = a->lengths[row] + 1 - start;
    if (count <= 0) return;  // this row is shorter than others
    const float *queries = a->qkv + (row * (a->heads + 2 * a->kv) + head * group) * a->width;
    int64_t stored = ((row * a->kv + head) * a->capacity + start) * a->width;
    piece(a, queries, a->keys + stored, a->values + stored, count < PIECE ? count : PIECE, group,
          job->parts + chunk * group * (a->width + 2));
}

// y = sum of exp(largest_i - largest) * part_i, over the same sum of the sums
static void join(const attention_job *job, int64_t row, int64_t query_head) {
    const attention *a = job->a;
    const int64_t group = a->heads / a->kv, width = a->width, stride = group * (width + 2);
    int64_t pieces = (a->lengths[row] + 1 - first_seen(a, row) + PIECE - 1) / PIECE;
    int64_t first = (row * a->kv + query_head / group) * job->most_pieces;
    const float *parts = job->parts + first * stride + query_head % group * (width + 2);
    float *y = a->y + (row * a->heads + query_head) * width, largest = -INFINITY, sum = 0;
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

#define WORTH_SHARING 40000  // multiplications; below it waking threads costs more than they save

int attend(const attention *a) {
    int64_t longest = 0;
    for (int64_t row = 0; row < a->batch; row++) {
        int64_t seen = a->lengths[row] + 1 - first_seen(a, row);
        if (seen > longest) longest = seen;
    }
    attention_job job = {a, (longest + PIECE - 1) / PIECE, NULL};
    const int64_t chunks = a->batch * a->kv * job.most_pieces, group = a->heads / a->kv;
    job.parts = scratch(FOR_ATTENTION, (size_t)(chunks * group * (a->width + 2)) * sizeof(float));
    if (!job.parts) return 1;
    for (int64_t row = 0; row < a->batch; row++) turn_and_store(a, row);
    if (a->batch * a->heads * a->width * longest < WORTH_SHARING)
        for (int64_t chunk = 0; chunk < chunks; chunk++) attention_chunk(&job, chunk);
    else
        pool_run(attention_chunk, &job, chunks);
    for (int64_t row = 0; row < a->batch; row++)
        for (int64_t head = 0; head < a->heads; head++) join(&job, row, head);
    return 0;
}
