// Plain float32 matrices times a few vectors.
#include "cpu.h"
#include "matrix.h"
#include "pool.h"
#include "vectors.h"

typedef struct {
    const matrix *m;
    const float *x;
    int64_t batch, rows_a_chunk;
    float *y;
    int add;
} linear_job;

static inline void store(const linear_job *job, int64_t row, int64_t at, float value) {
    float *y = job->y + at * job->m->rows + row;
    if (job->m->bias) value += job->m->bias[row];
    *y = job->add ? *y + value : value;
}

static void linear_portable(const linear_job *job, int64_t row) {
    const int64_t width = job->m->width;
    for (int64_t at = 0; at < job->batch; at++) {
        const float *w = (const float *)job->m->data + row * width, *x = job->x + at * width;
        double sum = 0;
        for (int64_t i = 0; i < width; i++) sum += (double)w[i] * x[i];
        store(job, row, at, (float)sum);
    }
}

#if NW_X86
#define STRETCH 128

// `deep` rows against `tile` vectors. Each pair is summed in stretches of 128 columns, which are then added up: the
// rounding of a long sum stays small, and is the same whatever the tiling.
INLINE AVX2 void linear_tile(const linear_job *job, int64_t row, const int deep, int64_t at, const int tile) {
    const int64_t width = job->m->width, whole = width / 8 * 8;
    __m256 total[4][8];
    for (int r = 0; r < deep; r++)
        for (int t = 0; t < tile; t++) total[r][t] = _mm256_setzero_ps();
    const float *w = (const float *)job->m->data + row * width, *x = job->x + at * width;
    for (int64_t from = 0; from < whole; from += STRETCH) {
        const int64_t to = from + STRETCH < whole ? from + STRETCH : whole;
        __m256 sum[4][8];
        for (int r = 0; r < deep; r++)
            for (int t = 0; t < tile; t++) sum[r][t] = _mm256_setzero_ps();
        for (int64_t i = from; i < to; i += 8) {
            __m256 v[8];
            for (int t = 0; t < tile; t++) v[t] = _mm256_loadu_ps(x + t * width + i);
            for (int r = 0; r < deep; r++) {
                if (tile >= 4) prefetch(w + r * width + i);
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
            for (int64_t i = whole; i < width; i++) all = __builtin_fmaf(w[r * width + i], x[t * width + i], all);
            store(job, row + r, at + t, all);
        }
}

// Eight vectors at once leave registers for one row only; but then weights pass once, at the memory's speed.
AVX2 static void linear_rows(const linear_job *job, int64_t row, int64_t end) {
    int64_t eights = job->batch / 8 * 8;
    for (int64_t r = row; r < end && eights; r++)
        for (int64_t at = 0; at < eights; at += 8) linear_tile(job, r, 1, at, 8);
    for (; row + 4 <= end; row += 4) {
        int64_t at = eights;
        for (; at + 4 <= job->batch; at += 4) {
            linear_tile(job, row, 2, at, 4);
            linear_tile(job, row + 2, 2, at, 4);
        }
        for (; at + 2 <= job->batch; at += 2) linear_tile(job, row, 4, at, 2);
        for (; at < job->batch; at++) linear_tile(job, row, 4, at, 1);
    }
    for (; row < end; row++)
        for (int64_t at = eights; at < job->batch; at++) linear_tile(job, row, 1, at, 1);
}
#endif

static void linear_chunk(void *pointer, int64_t chunk) {
    const linear_job *job = pointer;
    int64_t row = chunk * job->rows_a_chunk, end = row + job->rows_a_chunk;
    if (end > job->m->rows) end = job->m->rows;
#if NW_X86
    if (nw_level()) {
        linear_rows(job, row, end);
        return;
    }
#endif
    for (; row < end; row++) linear_portable(job, row);
}

#define CHUNK_BYTES 65536

int multiply_float(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    int64_t a_chunk = CHUNK_BYTES / (m->width * 4) / 4 * 4;
    if (a_chunk < 4) a_chunk = 4;
    linear_job job = {m, x, batch, a_chunk, y, add};
    pool_run(linear_chunk, &job, (m->rows + a_chunk - 1) / a_chunk);
    return 0;
}
