// Plain float32 matrices times a few vectors.
#include "cpu.h"
#include "matrix.h"
#include "pool.h"
#include "vectors.h"

typedef struct {
    const matrix *m;
    const float *x;
    int64_t batch, rows_a_chunk, blocks;
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
// Every pair of a row and a vector is summed one column after the other, in stretches of 64 columns whose sums are
// added in turn: the rounding of a long sum stays small. Registers hold eight rows, and vectors are independent of each
// other, so both ways below give the same bits, whatever the batch, the tiling and the threads.
#define STRETCH 64
#define FEW 6           // vectors up to which weights are used as they are read
#define PANEL 16        // rows of a panel
#define MOST_PANELS 4   // panels of a chunk: with STRETCH columns they fill half of the first-level cache
#define MOST_VECTORS 128  // vectors of a chunk

typedef struct {
    const float *row[8];
} eight_rows;

// The addresses of eight rows; the last one stands in for those that the matrix does not have.
INLINE eight_rows rows_from(const matrix *m, int64_t row) {
    eight_rows w;
    for (int r = 0; r < 8; r++) {
        int64_t there = row + r < m->rows ? row + r : m->rows - 1;
        w.row[r] = (const float *)m->data + there * m->width;
    }
    return w;
}

// Four columns of eight rows, transposed: out[j] holds column i + j.
INLINE AVX2 void four_columns(const eight_rows *w, int64_t i, __m256 *out) {
    __m256 pair[4];
    for (int r = 0; r < 4; r++)
        pair[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(w->row[r] + i)), _mm_loadu_ps(w->row[r + 4] + i), 1);
    __m256 a = _mm256_unpacklo_ps(pair[0], pair[1]), b = _mm256_unpacklo_ps(pair[2], pair[3]);
    __m256 c = _mm256_unpackhi_ps(pair[0], pair[1]), d = _mm256_unpackhi_ps(pair[2], pair[3]);
    out[0] = _mm256_shuffle_ps(a, b, 0x44);
    out[1] = _mm256_shuffle_ps(a, b, 0xee);
    out[2] = _mm256_shuffle_ps(c, d, 0x44);
    out[3] = _mm256_shuffle_ps(c, d, 0xee);
}

INLINE AVX2 __m256 one_column(const eight_rows *w, int64_t i) {
    return _mm256_setr_ps(w->row[0][i], w->row[1][i], w->row[2][i], w->row[3][i], w->row[4][i], w->row[5][i], w->row[6][i],
                          w->row[7][i]);
}

INLINE AVX2 void store_eight(const linear_job *job, int64_t row, int64_t at, __m256 value) {
    if (row + 8 > job->m->rows) {
        float eight[8];
        _mm256_storeu_ps(eight, value);
        for (int r = 0; row + r < job->m->rows; r++) store(job, row + r, at, eight[r]);
        return;
    }
    float *y = job->y + at * job->m->rows + row;
    if (job->m->bias) value = _mm256_add_ps(value, _mm256_loadu_ps(job->m->bias + row));
    _mm256_storeu_ps(y, job->add ? _mm256_add_ps(_mm256_loadu_ps(y), value) : value);
}

// ---- few vectors: `deep` times eight rows, enough for the sums not to wait for each other

INLINE AVX2 void few_tile(const linear_job *job, int64_t row, const int deep, const int tile) {
    const int64_t width = job->m->width;
    const eight_rows w = rows_from(job->m, row);  // the rows of the next eights lie 8 * width further on each
    const float *x = job->x;
    __m256 total[4][FEW];
    for (int64_t from = 0; from < width; from += STRETCH) {
        const int64_t to = from + STRETCH < width ? from + STRETCH : width;
        __m256 sum[4][FEW];
        for (int d = 0; d < deep; d++)
            for (int t = 0; t < tile; t++) sum[d][t] = _mm256_setzero_ps();
        int64_t i = from;
        for (; i + 4 <= to; i += 4) {
            for (int d = 0; d < deep; d++) {
                __m256 column[4];
                four_columns(&w, i + d * 8 * width, column);
                for (int j = 0; j < 4; j++)
                    for (int t = 0; t < tile; t++)
                        sum[d][t] = _mm256_fmadd_ps(column[j], _mm256_broadcast_ss(x + t * width + i + j), sum[d][t]);
            }
        }
        for (; i < to; i++)
            for (int d = 0; d < deep; d++) {
                __m256 column = one_column(&w, i + d * 8 * width);
                for (int t = 0; t < tile; t++)
                    sum[d][t] = _mm256_fmadd_ps(column, _mm256_broadcast_ss(x + t * width + i), sum[d][t]);
            }
        for (int d = 0; d < deep; d++)
            for (int t = 0; t < tile; t++) total[d][t] = from ? _mm256_add_ps(total[d][t], sum[d][t]) : sum[d][t];
    }
    for (int d = 0; d < deep; d++)
        for (int t = 0; t < tile; t++) store_eight(job, row + 8 * d, t, total[d][t]);
}

INLINE AVX2 void few_rows(const linear_job *job, int64_t row, int64_t end, const int deep, const int tile) {
    for (; row + 8 * deep <= end; row += 8 * deep) few_tile(job, row, deep, tile);
    for (; row < end; row += 8) few_tile(job, row, 1, tile);
}

AVX2 static void linear_few(const linear_job *job, int64_t row, int64_t end) {
    switch (job->batch) {
        case 1: few_rows(job, row, end, 4, 1); break;
        case 2: few_rows(job, row, end, 2, 2); break;
        case 3: few_rows(job, row, end, 2, 3); break;
        case 4: few_rows(job, row, end, 1, 4); break;
        case 5: few_rows(job, row, end, 1, 5); break;
        case 6: few_rows(job, row, end, 1, 6); break;
    }
}

// ---- many vectors: a stretch of a panel is transposed once and then multiplied by all of them

AVX2 static void pack_panel(const matrix *m, int64_t row, int64_t from, int64_t depth, float *to) {
    for (int half = 0; half < PANEL; half += 8) {
        const eight_rows w = rows_from(m, row + half);
        int64_t i = 0;
        for (; i + 4 <= depth; i += 4) {
            __m256 column[4];
            four_columns(&w, from + i, column);
            for (int j = 0; j < 4; j++) _mm256_store_ps(to + (i + j) * PANEL + half, column[j]);
        }
        for (; i < depth; i++) _mm256_store_ps(to + i * PANEL + half, one_column(&w, from + i));
    }
}

// total (tile, PANEL) = or += panel (depth, PANEL) times x (tile, depth), whose rows are `width` numbers apart
INLINE AVX2 void many_tile(const float *panel, int64_t depth, const float *x, int64_t width, const int tile, int first,
                           float *total) {
    __m256 sum[6][2];
    for (int t = 0; t < tile; t++) sum[t][0] = sum[t][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < depth; i++) {
        __m256 low = _mm256_load_ps(panel + i * PANEL), high = _mm256_load_ps(panel + i * PANEL + 8);
        for (int t = 0; t < tile; t++) {
            __m256 v = _mm256_broadcast_ss(x + t * width + i);
            sum[t][0] = _mm256_fmadd_ps(low, v, sum[t][0]);
            sum[t][1] = _mm256_fmadd_ps(high, v, sum[t][1]);
        }
    }
    for (int t = 0; t < tile; t++)
        for (int h = 0; h < 2; h++) {
            float *to = total + t * PANEL + 8 * h;
            _mm256_store_ps(to, first ? sum[t][h] : _mm256_add_ps(_mm256_load_ps(to), sum[t][h]));
        }
}

AVX2 static void tile_of(int64_t tile, const float *panel, int64_t depth, const float *x, int64_t width, int first, float *total) {
    switch (tile) {
        case 1: many_tile(panel, depth, x, width, 1, first, total); break;
        case 2: many_tile(panel, depth, x, width, 2, first, total); break;
        case 3: many_tile(panel, depth, x, width, 3, first, total); break;
        case 4: many_tile(panel, depth, x, width, 4, first, total); break;
        case 5: many_tile(panel, depth, x, width, 5, first, total); break;
        case 6: many_tile(panel, depth, x, width, 6, first, total); break;
    }
}

AVX2 static void linear_many(const linear_job *job, int64_t row, int64_t end, int64_t at, int64_t count) {
    const int64_t width = job->m->width, panels = (end - row + PANEL - 1) / PANEL, tiles = (count + 5) / 6;
    float panel[MOST_PANELS][STRETCH * PANEL] __attribute__((aligned(64)));
    float total[MOST_PANELS][MOST_VECTORS * PANEL] __attribute__((aligned(64)));
    for (int64_t from = 0; from < width; from += STRETCH) {
        const int64_t depth = from + STRETCH < width ? STRETCH : width - from;
        for (int64_t p = 0; p < panels; p++) pack_panel(job->m, row + p * PANEL, from, depth, panel[p]);
        for (int64_t tile = 0; tile < tiles; tile++) {  // of equal size as far as possible
            const int64_t first = tile * count / tiles, last = (tile + 1) * count / tiles;
            for (int64_t p = 0; p < panels; p++)
                tile_of(last - first, panel[p], depth, job->x + (at + first) * width + from, width, !from, total[p] + first * PANEL);
        }
    }
    for (int64_t t = 0; t < count; t++)
        for (int64_t r = 0; row + r < end; r += 8)
            store_eight(job, row + r, at + t, _mm256_load_ps(total[r / PANEL] + t * PANEL + r % PANEL));
}
#endif

static void linear_chunk(void *pointer, int64_t chunk) {
    const linear_job *job = pointer;
    int64_t row = chunk / job->blocks * job->rows_a_chunk, end = row + job->rows_a_chunk;
    if (end > job->m->rows) end = job->m->rows;
#if NW_X86
    if (nw_level()) {
        const int64_t block = chunk % job->blocks, at = block * job->batch / job->blocks;
        if (job->batch <= FEW) linear_few(job, row, end);
        else linear_many(job, row, end, at, (block + 1) * job->batch / job->blocks - at);
        return;
    }
#endif
    for (; row < end; row++) linear_portable(job, row);
}

#define CHUNK_BYTES 65536

int multiply_float(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    linear_job job = {m, x, batch, 0, 1, y, add};
#if NW_X86
    if (batch > FEW && nw_level()) {
        job.blocks = (batch + MOST_VECTORS - 1) / MOST_VECTORS;
        job.rows_a_chunk = MOST_PANELS * PANEL;
        pool_run(linear_chunk, &job, (m->rows + job.rows_a_chunk - 1) / job.rows_a_chunk * job.blocks);
        return 0;
    }
#endif
    job.rows_a_chunk = (CHUNK_BYTES / (m->width * 4) + 8) / 16 * 16;
    if (job.rows_a_chunk < 16) job.rows_a_chunk = 16;
    pool_run(linear_chunk, &job, (m->rows + job.rows_a_chunk - 1) / job.rows_a_chunk);
    return 0;
}
