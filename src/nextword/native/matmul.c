// Matrix products: activations are quantized once, then chunks of rows of all segments are shared out together.
#include "matmul.h"

#include "pool.h"

#define CHUNK_BYTES 32768      // of weights: about two microseconds of memory
#define CHUNK_NUMBERS 8192     // of activations to quantize: some microseconds

// ---- activations

#define SMALLEST 1e-33f  // 15 * 127 / this is finite; a superblock of smaller numbers counts as zeros

static void quantize_superblock(const float *x, int64_t columns, activations *to) {
    float largest = 0, poison = 0;
    for (int64_t i = 0; i < columns; i++) {
        float size = x[i] < 0 ? -x[i] : x[i];
        if (size > largest) largest = size;
        poison += x[i] * 0.0f;
    }
    memset(to, 0, sizeof *to);
    for (int b = 0; b < 16; b++) to->multipliers[b] = 1;
    if (poison != 0) {  // NaN compares unequal to zero
        to->scale = poison;
        for (int b = 0; b < 8; b++) to->scales[b] = to->float_sums[b] = poison;
        return;
    }
    if (!(largest > SMALLEST)) return;
    to->scale = largest / (127.0f * MAX_MULTIPLIER);
    for (int64_t b = 0; 32 * b < columns; b++) {
        float top = 0;
        for (int i = 0; i < 32; i++) {
            float size = x[32 * b + i] < 0 ? -x[32 * b + i] : x[32 * b + i];
            if (size > top) top = size;
        }
        float multiplier = __builtin_ceilf(top / (127.0f * to->scale));
        multiplier = multiplier < 1 ? 1 : multiplier > MAX_MULTIPLIER ? MAX_MULTIPLIER : multiplier;
        const float scale = to->scale * multiplier, inverse = 1.0f / scale;
        int32_t sums[2] = {0, 0};
        for (int i = 0; i < 32; i++) {
            const int32_t q = (int32_t)__builtin_rintf(x[32 * b + i] * inverse);
            to->q[32 * b + i] = (int8_t)q;
            sums[i / 16] += q;
        }
        for (int i = 0; i < 2; i++) {
            to->multipliers[2 * b + i] = (int16_t)multiplier;
            to->sums[2 * b + i] = (int16_t)(sums[i] * (int32_t)multiplier);
        }
        to->scales[b] = scale;
        to->block_sums[b] = sums[0] + sums[1];
        to->float_sums[b] = scale * (float)to->block_sums[b];
    }
}

void quantize_activations(const float *x, int64_t width, activations *to) {
    for (int64_t from = 0; from < width; from += SUPERBLOCK)
        quantize_superblock(x + from, width - from < SUPERBLOCK ? width - from : SUPERBLOCK, to++);
}

// ---- jobs

#define MAX_SEGMENTS 16

typedef struct {
    segment_job segments[MAX_SEGMENTS];
    int64_t rows_a_chunk[MAX_SEGMENTS], chunks[MAX_SEGMENTS];
    const float *x;
    activations *a;
    int64_t batch, width, superblocks, vectors_a_chunk;
} product;

static void quantize_chunk(void *pointer, int64_t chunk) {
    const product *p = pointer;
    int64_t at = chunk * p->vectors_a_chunk, end = at + p->vectors_a_chunk;
    for (; at < end && at < p->batch; at++)
        quantize_activations(p->x + at * p->width, p->width, p->a + at * p->superblocks);
}

static void product_chunk(void *pointer, int64_t chunk) {
    const product *p = pointer;
    int64_t i = 0;
    for (; chunk >= p->chunks[i]; i++) chunk -= p->chunks[i];
    const segment_job *job = p->segments + i;
    const int64_t row = chunk * p->rows_a_chunk[i], end = row + p->rows_a_chunk[i];
    (is_float(job->type) ? multiply_floats : multiply_quantized)(job, row, end < job->rows ? end : job->rows);
}

static int64_t rows_of_chunk(int64_t bytes) {
    const int64_t rows = CHUNK_BYTES / bytes / 16 * 16;
    return rows < 16 ? 16 : rows;
}

static int quantize_all(const matrix *m, product *p) {
    int floats = 1;
    for (int64_t i = 0; i < m->segment_count; i++) floats = floats && is_float(m->segments[i].type);
    if (floats) return 0;
    p->superblocks = (m->width + SUPERBLOCK - 1) / SUPERBLOCK;
    p->a = scratch(FOR_ACTIVATIONS, (size_t)(p->batch * p->superblocks) * sizeof(activations));
    if (!p->a) return 1;
    p->vectors_a_chunk = CHUNK_NUMBERS / m->width + 1;
    pool_run(quantize_chunk, p, (p->batch + p->vectors_a_chunk - 1) / p->vectors_a_chunk);
    return 0;
}

int multiply(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    if (!batch) return 0;
    product p = {.x = x, .batch = batch, .width = m->width};
    if (m->segment_count > MAX_SEGMENTS || quantize_all(m, &p)) return 1;
    int64_t chunks = 0, row = 0;
    for (int64_t i = 0; i < m->segment_count; row += m->segments[i++].rows) {
        const segment *s = m->segments + i;
        const int64_t bytes = row_bytes(s->type, m->width);
        p.segments[i] = (segment_job){s->type, s->rows, m->width, bytes, s->data, m->bias ? m->bias + row : NULL,
                                      x, p.a, batch, p.superblocks, m->rows, 0, y + row, add};
        p.rows_a_chunk[i] = rows_of_chunk(bytes);
        p.segments[i].skipped = (nw_threads() - 1) * p.rows_a_chunk[i];
        p.chunks[i] = (s->rows + p.rows_a_chunk[i] - 1) / p.rows_a_chunk[i];
        chunks += p.chunks[i];
    }
    pool_run(product_chunk, &p, chunks);
    return 0;
}

EXPORT int nw_multiply(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    return multiply(m, x, batch, y, add);
}
