// Packed products with AVX2, a part of matmul_quant.c: two groups, sixteen rows, against a tile of up to four vectors.
//
// The eight int32 or int16 sums stay in registers; each weight is unpacked once for four vectors and each activation
// broadcast once for two groups. What limits it is the four vector pipes, not loads and not the width of the front end.
#pragma once

// Compilers like to regroup sums of integers, and then run out of registers. This keeps a sum as it is written.
#define IN_ORDER(sum) __asm__("" : "+x"(sum))
#define UNROLL _Pragma("GCC unroll 8")

typedef struct {
    int kind, precise, groups, vectors;  // constants wherever it is used, so that every variant is compiled by itself
} variant;

// Eight products of at most 2 * 15 * 127 are summed in int16: 30,480 fits.
INLINE AVX2 void nibble_sums(const variant v, const uint8_t *const *bytes, const int8_t *q, __m256i (*sums)[MOST]) {
    const __m256i mask = _mm256_set1_epi8(15);
    UNROLL for (int j = 0; j < 4; j++)
        UNROLL for (int high = 0; high < 2; high++) {
            __m256i w[2];
            UNROLL for (int g = 0; g < v.groups; g++) {
                w[g] = LOAD(bytes[g] + 32 * j);
                w[g] = _mm256_and_si256(high ? _mm256_srli_epi16(w[g], 4) : w[g], mask);
            }
            UNROLL for (int t = 0; t < v.vectors; t++) {
                __m256i four = BROADCAST(q + t * sizeof(activation) + 16 * high + 4 * j);
                UNROLL for (int g = 0; g < v.groups; g++) {
                    sums[g][t] = _mm256_add_epi16(sums[g][t], _mm256_maddubs_epi16(w[g], four));
                    IN_ORDER(sums[g][t]);
                }
            }
        }
}

// |w| times the activation with w's sign: 2 * 128 * 127 fits in int16 once, so each product is widened.
INLINE AVX2 void byte_sums(const variant v, const uint8_t *const *bytes, const int8_t *q, int16_t factor,
                           __m256i (*sums)[MOST]) {
    UNROLL for (int j = 0; j < 8; j++) {
        __m256i w[2], size[2];
        UNROLL for (int g = 0; g < v.groups; g++) {
            w[g] = LOAD(bytes[g] + 32 * j);
            size[g] = _mm256_abs_epi8(w[g]);
        }
        UNROLL for (int t = 0; t < v.vectors; t++) {
            __m256i four = BROADCAST(q + t * sizeof(activation) + 4 * j);
            UNROLL for (int g = 0; g < v.groups; g++) {
                __m256i product = _mm256_maddubs_epi16(size[g], _mm256_sign_epi8(four, w[g]));
                sums[g][t] = _mm256_add_epi32(sums[g][t], _mm256_madd_epi16(product, _mm256_set1_epi16(factor)));
                IN_ORDER(sums[g][t]);
            }
        }
    }
}

// The dot products of one block of every row with one of every vector, exact in int32.
INLINE AVX2 void dots_avx2(const variant v, const uint8_t *const *bytes, const activation *a, __m256i (*dots)[MOST]) {
    for (int g = 0; g < v.groups; g++)
        for (int t = 0; t < v.vectors; t++)
            dots[g][t] = v.kind == Q4_0 ? BROADCAST(&a[t].offset) : _mm256_setzero_si256();
    UNROLL for (int fine = 0; fine <= v.precise; fine++) {
        const int8_t *q = fine ? a->fine : a->q;
        const int16_t factor = v.precise && !fine ? 254 : 1;
        if (v.kind == Q8_0) {
            byte_sums(v, bytes, q, factor, dots);
            continue;
        }
        __m256i sums[2][MOST] = {0};
        nibble_sums(v, bytes, q, sums);
        for (int g = 0; g < v.groups; g++)
            for (int t = 0; t < v.vectors; t++)
                dots[g][t] = _mm256_add_epi32(dots[g][t], _mm256_madd_epi16(sums[g][t], _mm256_set1_epi16(factor)));
    }
}

// Weights that will be read next and are asked for meanwhile, so many cache lines at every step.
typedef struct {
    const char *at, *end;
    int64_t lines;
} upcoming;

// `a`: the first vector's activations, `apart` from block to block.
INLINE AVX2 void tile_avx2(const product_job *job, const variant v, int64_t group, int64_t at, const activation *a,
                           int64_t apart, upcoming *next) {
    const int bytes = (int)block_bytes(v.kind), head = (int)block_head(v.kind);
    const int64_t blocks = job->blocks, lines = next->lines;
    const uint8_t *block = (const uint8_t *)job->m->data + group * blocks * bytes;
    const char *ahead = next->at, *const end = next->end;
    __m256 sums[2][MOST];
    for (int g = 0; g < v.groups; g++)
        for (int t = 0; t < v.vectors; t++) sums[g][t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, block += bytes, a += apart) {
        for (int64_t i = 0; ahead < end && i < lines; i++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        const uint8_t *of[2] = {block, block + blocks * bytes}, *const behind[2] = {of[0] + head, of[1] + head};
        __m256i dots[2][MOST];
        dots_avx2(v, behind, a, dots);
        for (int g = 0; g < v.groups; g++) {
            __m256 scales = HALVES(of[g]), minima = v.kind == Q4_1 ? HALVES(of[g] + 16) : scales;
            for (int t = 0; t < v.vectors; t++) {
                __m256 scale = _mm256_mul_ps(scales, _mm256_broadcast_ss(&a[t].scale));
                sums[g][t] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots[g][t]), sums[g][t]);
                if (v.kind != Q4_1) continue;
                sums[g][t] = _mm256_fmadd_ps(minima, _mm256_broadcast_ss(&a[t].sum), sums[g][t]);
            }
        }
    }
    next->at = ahead;
    UNROLL for (int t = 0; t < v.vectors; t++)
        UNROLL for (int g = 0; g < v.groups; g++) store_avx2(job, group + g, at + t, sums[g][t]);
}

// Groups `first` to `end` stay in the second-level cache while tile after tile of vectors passes over them, and what a
// vector gets from them is written side by side.
INLINE AVX2 void chunk_avx2(const product_job *job, int64_t first, int64_t end, upcoming *next, const int kind,
                            const int precise) {
    for (int64_t at = 0, size; at < job->batch; at += size) {
        size = tile_size(job->batch - at);
        const activation *a = job->activations + at * job->blocks;
        int64_t group = first;
        for (; group + 2 <= end; group += 2) {
            if (size == 4) tile_avx2(job, (variant){kind, precise, 2, 4}, group, at, a, 4, next);
            else if (size == 3) tile_avx2(job, (variant){kind, precise, 2, 3}, group, at, a, 3, next);
            else if (size == 2) tile_avx2(job, (variant){kind, precise, 2, 2}, group, at, a, 2, next);
            else tile_avx2(job, (variant){kind, precise, 2, 1}, group, at, a, 1, next);
        }
        for (int64_t t = 0; group < end && t < size; t++)
            tile_avx2(job, (variant){kind, precise, 1, 1}, group, at + t, a + t, size, next);
    }
}

typedef void (*chunk_of_kind)(const product_job *, int64_t first, int64_t end, upcoming *next);

#define CHUNK_OF_KIND(NAME, KIND, PRECISE)                                                          \
    AVX2 static void NAME(const product_job *job, int64_t first, int64_t end, upcoming *next) {      \
        chunk_avx2(job, first, end, next, KIND, PRECISE);                                            \
    }

CHUNK_OF_KIND(q4_0_avx2, Q4_0, 0)
CHUNK_OF_KIND(q4_1_avx2, Q4_1, 0)
CHUNK_OF_KIND(q8_0_avx2, Q8_0, 0)
CHUNK_OF_KIND(q4_0_precise_avx2, Q4_0, 1)
CHUNK_OF_KIND(q4_1_precise_avx2, Q4_1, 1)
CHUNK_OF_KIND(q8_0_precise_avx2, Q8_0, 1)

// The chunk of as many further on as there are threads is asked for meanwhile: likely this thread's next one.
static void product_chunk_avx2(const product_job *job, int64_t chunk, int64_t first, int64_t end) {
    static const chunk_of_kind kinds[2][3] = {{q4_0_avx2, q4_1_avx2, q8_0_avx2},
                                              {q4_0_precise_avx2, q4_1_precise_avx2, q8_0_precise_avx2}};
    const matrix *m = job->m;
    const int64_t group_bytes = job->blocks * block_bytes(m->kind), size = (m->rows + 7) / 8 * group_bytes;
    const int64_t from = (chunk + nw_threads()) * job->groups_a_chunk * group_bytes;
    const int64_t to = from + job->groups_a_chunk * group_bytes, tiles = (job->batch + MOST - 1) / MOST;
    const char *data = m->data;
    upcoming next = {data + (from < size ? from : size), data + (to < size ? to : size),
                     (2 * block_bytes(m->kind) + 64 * tiles - 1) / (64 * tiles)};
    kinds[m->precise != 0][m->kind - Q4_0](job, first, end, &next);
}
