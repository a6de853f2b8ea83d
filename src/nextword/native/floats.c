// float32: a matrix times a few vectors, and the small operations of one decoding step.
#include "cpu.h"
#include "pool.h"

#include <math.h>

// ---- y (batch, rows) = x (batch, width) times w (rows, width), all plain float32

typedef struct {
    const float *w, *x;
    int64_t rows, width, batch, rows_a_chunk;
    float *y;
} linear_job;

#define STRETCH 128

static void linear_portable(const linear_job *job, int64_t row) {
    for (int64_t at = 0; at < job->batch; at++) {
        const float *w = job->w + row * job->width, *x = job->x + at * job->width;
        double sum = 0;
        for (int64_t i = 0; i < job->width; i++) sum += (double)w[i] * x[i];
        job->y[at * job->rows + row] = (float)sum;
    }
}

#if NW_X86
INLINE AVX2 float add_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// `deep` rows against `tile` vectors. Each pair is summed in stretches of 128 columns, which are then added up: the
// rounding of a long sum stays small, and is the same whatever the tiling.
INLINE AVX2 void linear_tile(const linear_job *job, int64_t row, const int deep, int64_t at, const int tile) {
    const int64_t width = job->width, whole = width / 8 * 8;
    __m256 total[4][4];
    for (int r = 0; r < deep; r++)
        for (int t = 0; t < tile; t++) total[r][t] = _mm256_setzero_ps();
    const float *w = job->w + row * width, *x = job->x + at * width;
    for (int64_t from = 0; from < whole; from += STRETCH) {
        const int64_t to = from + STRETCH < whole ? from + STRETCH : whole;
        __m256 sum[4][4];
        for (int r = 0; r < deep; r++)
            for (int t = 0; t < tile; t++) sum[r][t] = _mm256_setzero_ps();
        for (int64_t i = from; i < to; i += 8) {
            __m256 v[4];
            for (int t = 0; t < tile; t++) v[t] = _mm256_loadu_ps(x + t * width + i);
            for (int r = 0; r < deep; r++) {
                __m256 weights = _mm256_loadu_ps(w + r * width + i);
                for (int t = 0; t < tile; t++) sum[r][t] = _mm256_fmadd_ps(weights, v[t], sum[r][t]);
            }
        }
        for (int r = 0; r < deep; r++)
            for (int t = 0; t < tile; t++) total[r][t] = _mm256_add_ps(total[r][t], sum[r][t]);
    }
    for (int r = 0; r < deep; r++)
        for (int t = 0; t < tile; t++) {
            float all = add_lanes(total[r][t]);
            for (int64_t i = whole; i < width; i++) all = fmaf(w[r * width + i], x[t * width + i], all);
            job->y[(at + t) * job->rows + row + r] = all;
        }
}

AVX2 static void linear_rows(const linear_job *job, int64_t row, int64_t end) {
    for (; row + 2 <= end && job->batch >= 4; row += 2) {
        int64_t at = 0;
        for (; at + 4 <= job->batch; at += 4) linear_tile(job, row, 2, at, 4);
        for (; at < job->batch; at++) linear_tile(job, row, 2, at, 1);
    }
    for (; row + 4 <= end; row += 4) {
        int64_t at = 0;
        for (; at + 2 <= job->batch; at += 2) linear_tile(job, row, 4, at, 2);
        for (; at < job->batch; at++) linear_tile(job, row, 4, at, 1);
    }
    for (; row < end; row++)
        for (int64_t at = 0; at < job->batch; at++) linear_tile(job, row, 1, at, 1);
}
#endif

static void linear_chunk(void *pointer, int64_t chunk) {
    const linear_job *job = pointer;
    int64_t row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    if (end > job->rows) end = job->rows;
#if NW_X86
    if (nw_level()) {
        linear_rows(job, row, end);
        return;
    }
#endif
    for (; row < end; row++) linear_portable(job, row);
}

#define CHUNK_BYTES 65536

void nw_linear(const float *w, int64_t rows, int64_t width, const float *x, int64_t batch, float *y) {
    int64_t a_chunk = CHUNK_BYTES / (width * 4) / 4 * 4;
    if (a_chunk < 4) a_chunk = 4;
    linear_job job = {w, x, rows, width, batch, a_chunk, y};
    pool_run(linear_chunk, &job, (rows + a_chunk - 1) / a_chunk);
}

// ---- y = x / sqrt(mean(x^2) + eps) * weight, a row

typedef struct {
    const float *x, *weight;
    int64_t rows, width, rows_a_chunk;
    float eps;
    float *y;
} rows_job;

#define CHUNK_NUMBERS 32768

static void share_rows(chunk_function work, rows_job *job) {
    job->rows_a_chunk = CHUNK_NUMBERS / job->width + 1;
    pool_run(work, job, (job->rows + job->rows_a_chunk - 1) / job->rows_a_chunk);
}

static void rms_norm_chunk(void *pointer, int64_t chunk) {
    const rows_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    for (; row < end && row < job->rows; row++) {
        const float *x = job->x + row * width;
        float *y = job->y + row * width, part[16] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + 16 <= width; i += 16)
            for (int j = 0; j < 16; j++) part[j] += x[i + j] * x[i + j];
        for (; i < width; i++) sum += x[i] * x[i];
        for (int j = 0; j < 16; j++) sum += part[j];
        float factor = 1.0f / sqrtf(sum / (float)width + job->eps);
        for (i = 0; i < width; i++) y[i] = x[i] * factor * job->weight[i];
    }
}

void nw_rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y) {
    rows_job job = {x, weight, rows, width, 0, eps, y};
    share_rows(rms_norm_chunk, &job);
}

// ---- exp of eight numbers, Cephes' expf: within 2 units in the last place; NaN stays NaN

#if NW_X86
INLINE AVX2 __m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));  // NaN is the second operand
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

AVX2 static void silu_product(const float *gate, const float *up, int64_t width, float *y) {
    int64_t i = 0;
    const __m256 one = _mm256_set1_ps(1.0f);
    for (; i + 8 <= width; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
        __m256 s = _mm256_div_ps(g, _mm256_add_ps(one, e));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(s, _mm256_loadu_ps(up + i)));
    }
    for (; i < width; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}
#endif

static void silu_chunk(void *pointer, int64_t chunk) {
    const rows_job *job = pointer;
    int64_t width = job->width, row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    for (; row < end && row < job->rows; row++) {
        const float *x = job->x + row * 2 * width;
        float *y = job->y + row * width;
#if NW_X86
        if (nw_level()) {
            silu_product(x, x + width, width, y);
            continue;
        }
#endif
        for (int64_t i = 0; i < width; i++) y[i] = x[i] / (1.0f + expf(-x[i])) * x[width + i];
    }
}

// y (rows, width) = silu(x[:, :width]) * x[:, width:], x (rows, 2 width)
void nw_silu_product(const float *x, int64_t rows, int64_t width, float *y) {
    rows_job job = {x, NULL, rows, width, 0, 0, y};
    share_rows(silu_chunk, &job);
}

// ---- attention of one new token a row: turn query and key, store key and value, look at all that is stored

typedef struct {
    float *qkv;                 // (batch, heads + 2 kv, width): queries, keys, values
    const float *cosine, *sine; // (batch or 1, rotary): see rotary.py; sine carries its sign
    int64_t table_stride;       // 0 when all rows stand at one position
    float *keys, *values;       // (batch, kv, capacity, width)
    const int64_t *lengths;     // (batch,) tokens stored before this one
    float *y;                   // (batch, heads * width)
    float *scores;              // (batch * heads, longest)
    int64_t heads, kv, width, rotary, capacity, longest, window;
    float scale;
} attention_job;

static void turn(float *head, const float *cosine, const float *sine, int64_t rotary) {
    for (int64_t i = 0, half = rotary / 2; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cosine[i] + b * sine[i];
        head[half + i] = b * cosine[half + i] + a * sine[half + i];
    }
}

static float dot_portable(const float *a, const float *b, int64_t width) {
    float sum = 0;
    for (int64_t i = 0; i < width; i++) sum += a[i] * b[i];
    return sum;
}

static void head_portable(const float *query, const float *keys, const float *values, int64_t count, int64_t width, float scale, float *scores, float *y) {
    float largest = -INFINITY, sum = 0;
    for (int64_t p = 0; p < count; p++) {
        scores[p] = dot_portable(query, keys + p * width, width) * scale;
        if (!(scores[p] <= largest)) largest = scores[p];
    }
    memset(y, 0, (size_t)width * sizeof(float));
    for (int64_t p = 0; p < count; p++) {
        float share = expf(scores[p] - largest);
        sum += share;
        for (int64_t i = 0; i < width; i++) y[i] += share * values[p * width + i];
    }
    for (int64_t i = 0; i < width; i++) y[i] /= sum;
}

#if NW_X86
AVX2 static void head_avx2(const float *query, const float *keys, const float *values, int64_t count, int64_t width, float scale, float *scores, float *y) {
    float largest = -INFINITY, sum = 0;
    for (int64_t p = 0; p < count; p++) {
        const float *key = keys + p * width;
        __m256 a = _mm256_setzero_ps(), b = a;
        for (int64_t i = 0; i < width; i += 16) {
            a = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), _mm256_loadu_ps(key + i), a);
            b = _mm256_fmadd_ps(_mm256_loadu_ps(query + i + 8), _mm256_loadu_ps(key + i + 8), b);
        }
        scores[p] = add_lanes(_mm256_add_ps(a, b)) * scale;
        if (!(scores[p] <= largest)) largest = scores[p];
    }
    int64_t p = 0;
    __m256 total = _mm256_setzero_ps();
    for (; p + 8 <= count; p += 8) {
        __m256 share = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + p), _mm256_set1_ps(largest)));
        total = _mm256_add_ps(total, share);
        _mm256_storeu_ps(scores + p, share);
    }
    sum = add_lanes(total);
    for (; p < count; p++) sum += scores[p] = expf(scores[p] - largest);
    const __m256 part = _mm256_set1_ps(1.0f / sum);
    for (int64_t i = 0; i < width; i += 16) {
        __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
        for (p = 0; p + 2 <= count; p += 2) {
            const float *value = values + p * width + i;
            __m256 first = _mm256_broadcast_ss(scores + p), second = _mm256_broadcast_ss(scores + p + 1);
            a = _mm256_fmadd_ps(first, _mm256_loadu_ps(value), a);
            b = _mm256_fmadd_ps(first, _mm256_loadu_ps(value + 8), b);
            c = _mm256_fmadd_ps(second, _mm256_loadu_ps(value + width), c);
            d = _mm256_fmadd_ps(second, _mm256_loadu_ps(value + width + 8), d);
        }
        if (p < count) {
            __m256 share = _mm256_broadcast_ss(scores + p);
            a = _mm256_fmadd_ps(share, _mm256_loadu_ps(values + p * width + i), a);
            b = _mm256_fmadd_ps(share, _mm256_loadu_ps(values + p * width + i + 8), b);
        }
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_add_ps(a, c), part));
        _mm256_storeu_ps(y + i + 8, _mm256_mul_ps(_mm256_add_ps(b, d), part));
    }
}
#endif

// One row's key head and the query heads that share it.
static void attention_chunk(void *pointer, int64_t chunk) {
    const attention_job *job = pointer;
    int64_t row = chunk / job->kv, head = chunk % job->kv, group = job->heads / job->kv, width = job->width;
    int64_t length = job->lengths[row];
    float *fused = job->qkv + row * (job->heads + 2 * job->kv) * width;
    float *query = fused + head * group * width, *key = fused + (job->heads + head) * width, *value = key + job->kv * width;
    if (job->rotary) {
        const float *cosine = job->cosine + row * job->table_stride, *sine = job->sine + row * job->table_stride;
        for (int64_t g = 0; g < group; g++) turn(query + g * width, cosine, sine, job->rotary);
        turn(key, cosine, sine, job->rotary);
    }
    int64_t stored = (row * job->kv + head) * job->capacity * width;
    memcpy(job->keys + stored + length * width, key, (size_t)width * sizeof(float));
    memcpy(job->values + stored + length * width, value, (size_t)width * sizeof(float));
    int64_t first = job->window && length + 1 > job->window ? length + 1 - job->window : 0;
    const float *keys = job->keys + stored + first * width, *values = job->values + stored + first * width;
    for (int64_t g = 0; g < group; g++) {
        int64_t at = row * job->heads + head * group + g;
        float *scores = job->scores + at * job->longest;
#if NW_X86
        if (nw_level() && width % 16 == 0) {
            head_avx2(query + g * width, keys, values, length + 1 - first, width, job->scale, scores, job->y + at * width);
            continue;
        }
#endif
        head_portable(query + g * width, keys, values, length + 1 - first, width, job->scale, scores, job->y + at * width);
    }
}

#define WORTH_SHARING 20000  // multiplications; below it waking threads costs more than they save

// Returns 0, or 1 when memory is short. `qkv` is turned in place.
int nw_attend(float *qkv, const float *cosine, const float *sine, int64_t table_stride, int64_t rotary, float *keys, float *values,
              const int64_t *lengths, int64_t batch, int64_t heads, int64_t kv, int64_t width, int64_t capacity, int64_t window,
              float scale, float *y) {
    static _Thread_local void *held;
    static _Thread_local size_t held_size;
    int64_t longest = 0;
    for (int64_t row = 0; row < batch; row++)
        if (lengths[row] >= longest) longest = lengths[row] + 1;
    float *scores = scratch(&held, &held_size, (size_t)(batch * heads * longest) * sizeof(float));
    if (!scores) return 1;
    attention_job job = {qkv, cosine, sine, table_stride, keys, values, lengths, y, scores, heads, kv, width, rotary, capacity, longest, window, scale};
    if (batch * heads * width * longest < WORTH_SHARING) {
        for (int64_t chunk = 0; chunk < batch * kv; chunk++) attention_chunk(&job, chunk);
        return 0;
    }
    pool_run(attention_chunk, &job, batch * kv);
    return 0;
}
