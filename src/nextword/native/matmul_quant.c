// Packed matrices times float32 vectors.
//
// Activations are rounded in blocks of 32: to int8, or for a `precise` matrix to 254 q + fine, two int8 terms that make
// some 15 bits, at twice the arithmetic. Integer sums are exact, and every pair of a row and a vector goes through the
// same operations in the same order, on every path and in every batch: the results are the same bits.
#include "cpu.h"
#include "matrix.h"
#include "pool.h"

// ---- activations: x ~ scale * n, n = q or 254 q + fine, q and fine in -127..127. A NaN or an infinity makes the
// scale, and so every sum, NaN.

typedef struct {
    int8_t q[32], fine[32];
    float scale, sum;  // sum = scale * (sum of n), what a minimum is multiplied by
    int32_t offset;    // what the dot product starts from when nibbles or bytes are held with an offset
    int32_t unused;
} activation;

#define SMALLEST 1e-33f  // 254 * 127 / this is finite; a block of smaller numbers counts as zeros
#define STEPS(precise) ((precise) ? 254.0f * 127 : 127.0f)

// What has to be added to an unsigned dot product for each unit of the sum of n.
static inline int32_t offset_factor(int64_t kind) { return kind == Q4_0 ? -8 : kind == Q8_0 ? -128 : 0; }

static void quantize(const float *x, int32_t factor, int precise, activation *to) {
    float largest = 0, poison = 0;
    for (int i = 0; i < 32; i++) {
        float size = x[i] < 0 ? -x[i] : x[i];
        if (size > largest) largest = size;
        poison += x[i] * 0.0f;
    }
    if (poison != 0 || !(largest > SMALLEST)) {  // NaN compares unequal to zero
        *to = (activation){.scale = poison, .sum = poison};
        return;
    }
    float inverse = STEPS(precise) / largest;
    int32_t all = 0;
    for (int i = 0; i < 32; i++) {
        int32_t n = (int32_t)__builtin_rintf(x[i] * inverse);
        to->q[i] = (int8_t)(precise ? __builtin_rintf((float)n * (1.0f / 254)) : (float)n);
        to->fine[i] = (int8_t)(precise ? n - 254 * to->q[i] : 0);
        all += n;
    }
    to->scale = largest / STEPS(precise);
    to->sum = to->scale * (float)all;
    to->offset = factor * all;
}

#if NW_X86
INLINE AVX2 void store_bytes(const __m256i *n, int8_t *to) {
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)to, bytes);
}

INLINE AVX2 void quantize_avx2(const float *x, int32_t factor, const int precise, activation *to) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v[4], largest = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v[i]));
        poison = _mm256_add_ps(poison, _mm256_mul_ps(v[i], _mm256_setzero_ps()));
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    float top = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    int clean = _mm256_movemask_ps(_mm256_cmp_ps(poison, _mm256_setzero_ps(), _CMP_EQ_OQ)) == 255;
    if (!clean || !(top > SMALLEST)) {
        quantize(x, factor, precise, to);
        return;
    }
    __m256 inverse = _mm256_set1_ps(STEPS(precise) / top);
    __m256i n[4], q[4];
    for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i all = _mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    int32_t total = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    for (int i = 0; precise && i < 4; i++) {
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(n[i]), _mm256_set1_ps(1.0f / 254)));
        n[i] = _mm256_sub_epi32(n[i], _mm256_mullo_epi32(q[i], _mm256_set1_epi32(254)));
    }
    store_bytes(precise ? q : n, to->q);
    if (precise) store_bytes(n, to->fine);
    to->scale = top / STEPS(precise);
    to->sum = to->scale * (float)total;
    to->offset = factor * total;
}

AVX2 static void quantize_row_avx2(const float *x, int64_t blocks, int32_t factor, int precise, activation *to,
                                   int64_t stride) {
    for (int64_t b = 0; b < blocks; b++)
        if (precise) quantize_avx2(x + 32 * b, factor, 1, to + b * stride);
        else quantize_avx2(x + 32 * b, factor, 0, to + b * stride);
}
#endif

// Vectors are multiplied in tiles of 4, and what is left over in one more, or for VNNI in tiles of 2 and 1.
// The activations of a tile lie together, those of its vectors side by side for each block.
#define MAX_TILE 4

static int64_t tile_size(int64_t left) {
    if (left >= 4) return 4;
    return left == 3 && nw_level() == LEVEL_VNNI ? 2 : left;
}

typedef struct {
    const matrix *m;
    const float *x;
    int64_t blocks, batch, groups_a_chunk, tiles_a_chunk;
    activation *activations;  // (tiles, blocks, vectors of the tile)
    float *y;                 // (batch, rows)
    int add;
} product_job;

static void quantize_tile(const product_job *job, int64_t at, int64_t size) {
    const int32_t factor = offset_factor(job->m->kind);
    const int precise = (int)job->m->precise;
    for (int64_t t = 0; t < size; t++) {
        const float *x = job->x + (at + t) * job->m->width;
        activation *to = job->activations + at * job->blocks + t;
#if NW_X86
        if (nw_level()) {
            quantize_row_avx2(x, job->blocks, factor, precise, to, size);
            continue;
        }
#endif
        for (int64_t b = 0; b < job->blocks; b++) quantize(x + 32 * b, factor, precise, to + b * size);
    }
}

static void quantize_chunk(void *pointer, int64_t chunk) {
    const product_job *job = pointer;
    int64_t at = chunk * job->tiles_a_chunk * MAX_TILE, end = at + job->tiles_a_chunk * MAX_TILE;
    while (at < end && at < job->batch) {
        int64_t size = tile_size(job->batch - at);
        quantize_tile(job, at, size);
        at += size;
    }
}

// ---- the product

// Writes the sums of eight rows for one vector, or as many as the matrix still has.
static __attribute__((noinline)) void store_group(const product_job *job, int64_t group, int64_t at, const float *eight) {
    const matrix *m = job->m;
    int64_t left = m->rows - 8 * group, count = left < 8 ? left : 8;
    float *y = job->y + at * m->rows + 8 * group;
    for (int64_t i = 0; i < count; i++) {
        float value = m->bias ? eight[i] + m->bias[8 * group + i] : eight[i];
        y[i] = job->add ? y[i] + value : value;
    }
}

static inline int32_t whole(const activation *a, int column, int precise) {
    return precise ? 254 * a->q[column] + a->fine[column] : a->q[column];
}

static void group_portable(const product_job *job, int64_t group, int64_t at, int64_t size) {
    const int64_t kind = job->m->kind;
    const int precise = (int)job->m->precise;
    for (int64_t t = 0; t < size; t++) {
        float eight[8] = {0};
        const uint8_t *block = (const uint8_t *)job->m->data + group * job->blocks * block_bytes(kind);
        const activation *a = job->activations + at * job->blocks + t;
        for (int64_t b = 0; b < job->blocks; b++, block += block_bytes(kind), a += size) {
            const uint8_t *bytes = block + block_head(kind);
            for (int lane = 0; lane < 8; lane++) {
                int32_t dot = kind == Q8_0 ? 0 : a->offset;
                for (int j = 0; j < (kind == Q8_0 ? 8 : 4); j++)
                    for (int i = 0; i < 4; i++) {
                        uint8_t byte = bytes[32 * j + 4 * lane + i];
                        int32_t n = whole(a, 4 * j + i, precise);
                        if (kind == Q8_0) dot += (int8_t)byte * n;
                        else dot += (byte & 15) * n + (byte >> 4) * whole(a, 16 + 4 * j + i, precise);
                    }
                eight[lane] = __builtin_fmaf(load_half(block + 2 * lane) * a->scale, (float)dot, eight[lane]);
                if (kind == Q4_1) eight[lane] = __builtin_fmaf(load_half(block + 16 + 2 * lane), a->sum, eight[lane]);
            }
        }
        store_group(job, group, at + t, eight);
    }
}

#if NW_X86
#define BROADCAST(p) _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)(p)))
#define HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))

INLINE AVX2 void store_avx2(const product_job *job, int64_t group, int64_t at, __m256 sums) {
    const matrix *m = job->m;
    if (m->rows - 8 * group < 8) {
        float eight[8];
        _mm256_storeu_ps(eight, sums);
        store_group(job, group, at, eight);
        return;
    }
    float *y = job->y + at * m->rows + 8 * group;
    if (m->bias) sums = _mm256_add_ps(sums, _mm256_loadu_ps(m->bias + 8 * group));
    _mm256_storeu_ps(y, job->add ? _mm256_add_ps(_mm256_loadu_ps(y), sums) : sums);
}

// Compilers like to regroup sums of integers, and then run out of registers. This keeps a sum as it is written.
#define IN_ORDER(sum) __asm__("" : "+x"(sum))
#define UNROLL _Pragma("GCC unroll 8")

#include "matmul_quant_avx2.inc"
#include "matmul_quant_vnni.inc"
#endif

static void multiply_groups(const product_job *job, int64_t group, int64_t row_groups, int64_t at, int64_t size) {
#if NW_X86
    if (nw_level() == LEVEL_VNNI) {
        groups_of_kind_vnni(job->m->kind)(job, group, row_groups, at, size);
        return;
    }
#endif
    for (int64_t end = group + row_groups; group < end; group++) group_portable(job, group, at, size);
}

#define GROUPS_TOGETHER 2
#define VECTORS_TOGETHER 64  // their activations stay in the second-level cache while the rows of a chunk pass

static void product_chunk(void *pointer, int64_t chunk) {
    const product_job *job = pointer;
    const int64_t groups = (job->m->rows + 7) / 8;
    int64_t first = chunk * job->groups_a_chunk, end = first + job->groups_a_chunk;
    if (end > groups) end = groups;
#if NW_X86
    if (nw_level() == LEVEL_AVX2) {
        product_chunk_avx2(job, chunk, first, end);
        return;
    }
#endif
    for (int64_t from = 0; from < job->batch; from += VECTORS_TOGETHER) {
        int64_t to = from + VECTORS_TOGETHER < job->batch ? from + VECTORS_TOGETHER : job->batch;
        for (int64_t group = first; group < end; group += GROUPS_TOGETHER) {
            int64_t row_groups = end - group < GROUPS_TOGETHER ? end - group : GROUPS_TOGETHER;
            for (int64_t at = from; at < to;) {
                int64_t size = tile_size(job->batch - at);
                multiply_groups(job, group, row_groups, at, size);
                at += size;
            }
        }
    }
}

#define CHUNK_BYTES 32768       // of weights: about two microseconds of memory
#define QUANTIZE_TOGETHER 8192  // numbers: some microseconds; fewer are not worth sharing out

int multiply_packed(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    const int64_t blocks = m->width / 32;
    activation *activations = scratch(FOR_ACTIVATIONS, (size_t)(batch * blocks) * sizeof(activation));
    if (!activations) return 1;
    int64_t groups_a_chunk = CHUNK_BYTES / (blocks * block_bytes(m->kind));
    groups_a_chunk = groups_a_chunk < 2 ? 2 : groups_a_chunk + groups_a_chunk % 2;
    int64_t tiles_a_chunk = QUANTIZE_TOGETHER / (MAX_TILE * m->width) + 1;
    product_job job = {m, x, blocks, batch, groups_a_chunk, tiles_a_chunk, activations, y, add};
    int64_t tiles = (batch + MAX_TILE - 1) / MAX_TILE;
    pool_run(quantize_chunk, &job, (tiles + tiles_a_chunk - 1) / tiles_a_chunk);
    pool_run(product_chunk, &job, ((m->rows + 7) / 8 + groups_a_chunk - 1) / groups_a_chunk);
    return 0;
}

int multiply(const matrix *m, const float *x, int64_t batch, float *y, int add) {
    if (!batch) return 0;
    return (m->kind == FLOAT32 ? multiply_float : multiply_packed)(m, x, batch, y, add);
}

EXPORT int nw_multiply(int kind, int precise, const void *data, int64_t rows, int64_t width, const float *x, int64_t batch,
                       float *y) {
    matrix m = {kind, rows, width, precise, data, NULL};
    return multiply(&m, x, batch, y, 0);
}
