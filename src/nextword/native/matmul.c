// Matrix products: activations are quantized once, then chunks of rows of all segments are shared out together.
#include "matmul.h"

#include "pool.h"

#define CHUNK_BYTES 32768      // of weights: about two microseconds of memory
#define CHUNK_NUMBERS 8192     // of activations to quantize: some microseconds

// From how many vectors on it pays to unpack rows for them all: measured on Zen 5, alike in AVX2 and AVX-512.
static int64_t many_of(int64_t type) {
    switch (type) {
        case Q2_K: case Q3_K: return 6;
        case IQ4_XS: return 8;
        case Q4_K: case Q5_K: case Q6_K: return 12;
        case Q5_0: case IQ4_NL: case MXFP4: return 16;
        default: return 20;
    }
}

// ---- jobs

#define MAX_SEGMENTS 16

typedef struct {
    segment_job segments[MAX_SEGMENTS];
    int64_t rows_a_chunk[MAX_SEGMENTS], chunks[MAX_SEGMENTS];
    kernels kernels;
    const float *x;
    activations *a;
    int64_t batch, width, superblocks, vectors_a_chunk;
} product;

// The kernels of this processor.
static kernels kernels_here(void) {
#if NW_X86
    if (nw_level() == LEVEL_AVX512_VNNI) return KERNELS(avx512_vnni);
    if (nw_level() == LEVEL_AVX_VNNI) return KERNELS(avx_vnni);
    if (nw_level() == LEVEL_AVX2) return KERNELS(avx2);
#elif defined(__aarch64__)
    if (nw_level()) return KERNELS(neon);
#endif
    return KERNELS(plain);
}

static void quantize_chunk(void *pointer, int64_t chunk) {
    const product *p = pointer;
    int64_t at = chunk * p->vectors_a_chunk, end = at + p->vectors_a_chunk;
    for (; at < end && at < p->batch; at++)
        p->kernels.quantize_activations(p->x + at * p->width, p->width, p->batch, p->a + at);
}

static void product_chunk(void *pointer, int64_t chunk) {
    const product *p = pointer;
    int64_t i = 0;
    for (; chunk >= p->chunks[i]; i++) chunk -= p->chunks[i];
    const segment_job *job = p->segments + i;
    const int64_t row = chunk * p->rows_a_chunk[i], end = row + p->rows_a_chunk[i];
    const kernels *k = &p->kernels;
    (is_float(job->type) ? k->multiply_floats : p->batch < many_of(job->type) ? k->multiply_few : k->multiply_many)(
        job, row, end < job->rows ? end : job->rows);
}

// A multiple of what the kernels take at a time.
static int64_t rows_of_chunk(int64_t type, int64_t bytes, int64_t batch) {
    const int64_t least = is_float(type) || batch < many_of(type) ? 16 : 32, rows = CHUNK_BYTES / bytes / least * least;
    return rows < least ? least : rows;
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
    product p = {.kernels = kernels_here(), .x = x, .batch = batch, .width = m->width};
    if (m->segment_count > MAX_SEGMENTS || quantize_all(m, &p)) return 1;
    int64_t chunks = 0, row = 0;
    for (int64_t i = 0; i < m->segment_count; row += m->segments[i++].rows) {
        const segment *s = m->segments + i;
        const int64_t bytes = row_bytes(s->type, m->width);
        p.segments[i] = (segment_job){s->type, s->rows, m->width, bytes, s->data, m->bias ? m->bias + row : NULL,
                                      x, p.a, batch, p.superblocks, m->rows, y + row, add};
        p.rows_a_chunk[i] = rows_of_chunk(s->type, bytes, batch);
        p.chunks[i] = (s->rows + p.rows_a_chunk[i] - 1) / p.rows_a_chunk[i];
        chunks += p.chunks[i];
    }
    pool_run(product_chunk, &p, chunks);
    return 0;
}

EXPORT int nw_multiply(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    return multiply(m, x, batch, y, add);
}
