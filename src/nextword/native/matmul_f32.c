// Plain float32 matrices times vectors.
//
// Every pair of a row and a vector is summed one column after the other, in stretches of 64 columns whose sums are
// added in turn, so that the rounding of a long sum stays small. Registers hold eight rows and no sum crosses their
// lanes: both ways below do the same operations in the same order, and the results are the same bits whatever the
// batch, the tiling and the threads.
#include "cpu.h"
#include "matrix.h"
#include "pool.h"

typedef struct {
    const matrix *m;
    const float *x;
    // A chunk is a few rows times one of `blocks` equal parts of the batch; all rows' come before the next part's.
    int64_t batch, blocks, rows_a_chunk, row_chunks;
    int64_t skipped;  // numbers between the end of a chunk's rows and the ones its thread probably takes next
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

#define FEW 8  // vectors up to which weights are used as they are read

#if NW_X86
#define STRETCH 64

static inline int64_t stretch_from(int64_t from, int64_t width) {
    return width - from < STRETCH ? width - from : STRETCH;
}

typedef struct {
    const float *row[8];
} eight_rows;

// The addresses of eight rows; the last one stands in for those that the matrix does not have.
INLINE eight_rows rows_from(const matrix *m, int64_t row) {
    eight_rows w;
    for (int r = 0; r < 8; r++) {
        int64_t index = row + r < m->rows ? row + r : m->rows - 1;
        w.row[r] = (const float *)m->data + index * m->width;
    }
    return w;
}

// Asks for the cache lines of eight rows that lie `ahead` numbers after column i. The processor's own prefetching
// cannot keep up with so many rows at once.
#define PREFETCH_ROWS(w, i, ahead) \
    for (int r = 0; (i) % 16 == 0 && r < 8; r++) _mm_prefetch((const char *)((w)->row[r] + (i) + (ahead)), _MM_HINT_T1)

// Four columns of eight rows, transposed: column[j] holds column i + j.
INLINE AVX2 void four_columns(const eight_rows *w, int64_t i, __m256 *column) {
    __m256 pair[4];  // rows r and r + 4
    for (int r = 0; r < 4; r++) {
        __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(w->row[r] + i));
        pair[r] = _mm256_insertf128_ps(low, _mm_loadu_ps(w->row[r + 4] + i), 1);
    }
    __m256 a = _mm256_unpacklo_ps(pair[0], pair[1]), b = _mm256_unpacklo_ps(pair[2], pair[3]);
    __m256 c = _mm256_unpackhi_ps(pair[0], pair[1]), d = _mm256_unpackhi_ps(pair[2], pair[3]);
    column[0] = _mm256_shuffle_ps(a, b, 0x44);
    column[1] = _mm256_shuffle_ps(a, b, 0xee);
    column[2] = _mm256_shuffle_ps(c, d, 0x44);
    column[3] = _mm256_shuffle_ps(c, d, 0xee);
}

INLINE AVX2 __m256 one_column(const eight_rows *w, int64_t i) {
    return _mm256_setr_ps(w->row[0][i], w->row[1][i], w->row[2][i], w->row[3][i], w->row[4][i], w->row[5][i],
                          w->row[6][i], w->row[7][i]);
}

// Out of line: the last rows only, once for each vector.
static __attribute__((noinline)) void store_last(const linear_job *job, int64_t row, int64_t at, const float *values) {
    for (; row < job->m->rows; row++) store(job, row, at, *values++);
}

INLINE AVX2 void store_eight(const linear_job *job, int64_t row, int64_t at, __m256 value) {
    if (row + 8 > job->m->rows) {
        float values[8];
        _mm256_storeu_ps(values, value);
        store_last(job, row, at, values);
        return;
    }
    float *y = job->y + at * job->m->rows + row;
    if (job->m->bias) value = _mm256_add_ps(value, _mm256_loadu_ps(job->m->bias + row));
    _mm256_storeu_ps(y, job->add ? _mm256_add_ps(_mm256_loadu_ps(y), value) : value);
}

// ---- few vectors: weights are transposed in registers and used at once

// total (tile, eight rows) += the sums of a stretch. Of one vector these wait for each other; but eight rows at a time
// are what memory delivers fastest, and taking two stretches side by side only pays where weights are in the cache.
INLINE AVX2 void few_sums(const linear_job *job, const eight_rows *w, int64_t from, const int tile, int64_t ahead,
                          __m256 *total) {
    const float *x = job->x;
    const int64_t width = job->m->width, to = from + stretch_from(from, width);
    __m256 sum[FEW];
    for (int t = 0; t < tile; t++) sum[t] = _mm256_setzero_ps();
    int64_t i = from;
    for (; i + 4 <= to; i += 4) {
        PREFETCH_ROWS(w, i, ahead);
        __m256 column[4];
        four_columns(w, i, column);
        for (int j = 0; j < 4; j++)
            for (int t = 0; t < tile; t++)
                sum[t] = _mm256_fmadd_ps(column[j], _mm256_broadcast_ss(x + t * width + i + j), sum[t]);
    }
    for (; i < to; i++) {
        __m256 column = one_column(w, i);
        for (int t = 0; t < tile; t++)
            sum[t] = _mm256_fmadd_ps(column, _mm256_broadcast_ss(x + t * width + i), sum[t]);
    }
    for (int t = 0; t < tile; t++) total[t] = _mm256_add_ps(total[t], sum[t]);
}

INLINE AVX2 void few_rows(const linear_job *job, int64_t row, int64_t end, const int tile) {
    const int64_t width = job->m->width;
    for (; row < end; row += 8) {
        const eight_rows w = rows_from(job->m, row);
        const int64_t ahead = 8 * width + (row + 8 < end ? 0 : job->skipped);
        __m256 total[FEW];
        for (int t = 0; t < tile; t++) total[t] = _mm256_setzero_ps();
        for (int64_t from = 0; from < width; from += STRETCH) few_sums(job, &w, from, tile, ahead, total);
        for (int t = 0; t < tile; t++) store_eight(job, row, t, total[t]);
    }
}

AVX2 static void linear_few(const linear_job *job, int64_t row, int64_t end) {
    switch (job->batch) {
        case 1: few_rows(job, row, end, 1); break;
        case 2: few_rows(job, row, end, 2); break;
        case 3: few_rows(job, row, end, 3); break;
        case 4: few_rows(job, row, end, 4); break;
        case 5: few_rows(job, row, end, 5); break;
        case 6: few_rows(job, row, end, 6); break;
        case 7: few_rows(job, row, end, 7); break;
        case 8: few_rows(job, row, end, 8); break;
    }
}

// ---- many vectors: a stretch of sixteen rows is transposed once and then multiplied by all of them

#define PANEL 16          // rows of a panel
#define MAX_PANELS 2     // panels of a chunk
#define MAX_VECTORS 128  // vectors of a chunk
#define TILE 6            // vectors whose sums fill the registers

// to (depth, PANEL) = columns `from` on of the panel's rows, transposed
AVX2 static void pack_panel(const matrix *m, int64_t row, int64_t from, int64_t depth, int64_t ahead, float *to) {
    for (int half = 0; half < PANEL; half += 8) {
        const eight_rows w = rows_from(m, row + half);
        int64_t i = 0;
        for (; i + 4 <= depth; i += 4) {
            PREFETCH_ROWS(&w, from + i, ahead);
            __m256 column[4];
            four_columns(&w, from + i, column);
            for (int j = 0; j < 4; j++) _mm256_store_ps(to + (i + j) * PANEL + half, column[j]);
        }
        for (; i < depth; i++) _mm256_store_ps(to + i * PANEL + half, one_column(&w, from + i));
    }
}

// total (tile, PANEL) += panel (depth, PANEL) times x (tile, depth), whose rows are `width` numbers apart
INLINE AVX2 void many_tile(const float *panel, int64_t depth, const float *x, int64_t width, const int tile,
                           float *total) {
    __m256 sum[TILE][2];
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
        for (int half = 0; half < 2; half++) {
            float *to = total + t * PANEL + 8 * half;
            _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), sum[t][half]));
        }
}

// Asks for `depth` columns of the vectors of the next tile: of wide ones the second-level cache holds too few.
INLINE void prefetch_vectors(const float *x, int64_t depth, int64_t width, int64_t count) {
    for (int64_t t = 0; t < count && t < TILE; t++)
        for (int64_t i = 0; i < depth; i += 16) _mm_prefetch((const char *)(x + t * width + i), _MM_HINT_T0);
}

// Counts above FEW split into tiles of nearly equal size: no tile is below four.
AVX2 static void tile_of(int64_t tile, const float *panel, int64_t depth, const float *x, int64_t width, float *total) {
    switch (tile) {
        case 4: many_tile(panel, depth, x, width, 4, total); break;
        case 5: many_tile(panel, depth, x, width, 5, total); break;
        case 6: many_tile(panel, depth, x, width, 6, total); break;
    }
}

AVX2 static void linear_many(const linear_job *job, int64_t row, int64_t end, int64_t at, int64_t count) {
    const int64_t width = job->m->width, panels = (end - row + PANEL - 1) / PANEL, tiles = (count + TILE - 1) / TILE;
    const float *x = job->x + at * width;
    float panel[MAX_PANELS][STRETCH * PANEL] __attribute__((aligned(64)));
    float total[MAX_PANELS][MAX_VECTORS * PANEL] __attribute__((aligned(64)));
    for (int64_t p = 0; p < panels; p++) memset(total[p], 0, (size_t)(count * PANEL) * sizeof(float));
    for (int64_t from = 0; from < width; from += STRETCH) {
        const int64_t depth = stretch_from(from, width);
        const int64_t ahead = from + STRETCH < width ? STRETCH : (end - row) * width + job->skipped - from;
        for (int64_t p = 0; p < panels; p++) pack_panel(job->m, row + p * PANEL, from, depth, ahead, panel[p]);
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t first = tile * count / tiles, next = (tile + 1) * count / tiles;
            prefetch_vectors(x + next * width + from, depth, width, count - next);
            for (int64_t p = 0; p < panels; p++)
                tile_of(next - first, panel[p], depth, x + first * width + from, width, total[p] + first * PANEL);
        }
    }
    for (int64_t t = 0; t < count; t++)
        for (int64_t r = 0; row + r < end; r += 8)
            store_eight(job, row + r, at + t, _mm256_load_ps(total[r / PANEL] + t * PANEL + r % PANEL));
}
#endif

static void linear_chunk(void *pointer, int64_t chunk) {
    const linear_job *job = pointer;
    int64_t row = chunk % job->row_chunks * job->rows_a_chunk, end = row + job->rows_a_chunk;
    if (end > job->m->rows) end = job->m->rows;
#if NW_X86
    if (nw_level()) {
        const int64_t block = chunk / job->row_chunks, at = block * job->batch / job->blocks;
        if (job->batch <= FEW) linear_few(job, row, end);
        else linear_many(job, row, end, at, (block + 1) * job->batch / job->blocks - at);
        return;
    }
#endif
    for (; row < end; row++) linear_portable(job, row);
}

#define CHUNK_BYTES 65536

// With few vectors a chunk is some 64 KB of weights. With many it is one panel, which memory delivers fastest, or where
// computing takes longer than that by far, two, which read the vectors half as often.
static int64_t rows_of_chunk(const matrix *m, int64_t batch) {
#if NW_X86
    if (batch > FEW && nw_level()) return batch <= 48 ? PANEL : MAX_PANELS * PANEL;
#endif
    const int64_t rows = CHUNK_BYTES / (m->width * 4) / 8 * 8;
    return rows < 8 ? 8 : rows;
}

int multiply_float(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    linear_job job = {m, x, batch, 1, rows_of_chunk(m, batch), 0, 0, y, add};
    job.row_chunks = (m->rows + job.rows_a_chunk - 1) / job.rows_a_chunk;
    job.skipped = (nw_threads() - 1) * job.rows_a_chunk * m->width;
#if NW_X86
    if (nw_level()) job.blocks = (batch + MAX_VECTORS - 1) / MAX_VECTORS;
#endif
    pool_run(linear_chunk, &job, job.row_chunks * job.blocks);
    return 0;
}
