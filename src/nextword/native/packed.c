// Matrices in quantized blocks of 32, as GGUF stores them, times float activations.
//
// Packed layout: groups of eight rows; within a group, blocks of 32 columns one after the other. A block of
//   q4: eight fp16 scales, eight fp16 minima, 4 x 32 bytes; byte 4r+i of vector j holds columns 4j+i (low
//       nibble) and 16+4j+i (high nibble) of row r.        w = scale * nibble + minimum
//   q8: eight fp16 scales, 8 x 32 bytes; byte 4r+i of vector j is column 4j+i of row r.      w = scale * byte
// so that one vector multiplies four columns of eight rows, and the sums of the rows stay in their lanes.
//
// Activations are rounded to int8 in blocks of 32. Integer sums are exact, and every (row, activation) pair
// goes through the same operations in the same order, so results do not depend on the batch.
#include "cpu.h"
#include "pool.h"

enum { Q4 = 4, Q8 = 8 };
#define Q4_BLOCK 160
#define Q8_BLOCK 272

static inline int64_t block_bytes(int kind) { return kind == Q4 ? Q4_BLOCK : Q8_BLOCK; }

int64_t nw_packed_bytes(int kind, int64_t rows, int64_t width) {
    return (rows + 7) / 8 * (width / 32) * block_bytes(kind);
}

// ---- packing: rows of GGUF blocks -> groups. `minimum` 0: the source has none and w = scale * (nibble - 8).

typedef struct {
    int kind, minimum;
    const uint8_t *source;
    int64_t rows, blocks;
    uint8_t *out;
} pack_job;

// -8 times a half: the sign flips and the exponent rises by three.
static uint16_t minus_eight_times(uint16_t half) {
    if (!(half & 0x7fff)) return half;
    if (half & 0x7c00) return (uint16_t)((half ^ 0x8000) + 3 * 1024);
    uint16_t mantissa = half & 0x3ff, exponent = 0;
    int doubled = 0;
    while (doubled < 3 && !(mantissa & 0x400)) mantissa <<= 1, doubled++;
    if (mantissa & 0x400) exponent = (uint16_t)(4 - doubled);
    return (uint16_t)(((half ^ 0x8000) & 0x8000) | exponent << 10 | (mantissa & 0x3ff));
}

static void pack_group(void *pointer, int64_t group) {
    const pack_job *job = pointer;
    int64_t stride = job->kind == Q8 ? 34 : job->minimum ? 20 : 18, bytes = block_bytes(job->kind);
    uint8_t *out = job->out + group * job->blocks * bytes;
    int64_t left = job->rows - 8 * group, lanes = left < 8 ? left : 8;
    if (lanes < 8) memset(out, 0, (size_t)(job->blocks * bytes));
    for (int64_t b = 0; b < job->blocks; b++, out += bytes)
        for (int64_t lane = 0; lane < lanes; lane++) {
            const uint8_t *from = job->source + ((8 * group + lane) * job->blocks + b) * stride;
            memcpy(out + 2 * lane, from, 2);
            if (job->kind == Q8) {
                for (int j = 0; j < 8; j++) memcpy(out + 16 + 32 * j + 4 * lane, from + 2 + 4 * j, 4);
                continue;
            }
            uint16_t low;
            memcpy(&low, from + (job->minimum ? 2 : 0), 2);
            if (!job->minimum) low = minus_eight_times(low);
            memcpy(out + 16 + 2 * lane, &low, 2);
            for (int j = 0; j < 4; j++) memcpy(out + 32 + 32 * j + 4 * lane, from + (job->minimum ? 4 : 2) + 4 * j, 4);
        }
}

void nw_pack(int kind, const uint8_t *source, int64_t rows, int64_t width, int minimum, uint8_t *out) {
    pack_job job = {kind, minimum, source, rows, width / 32, out};
    pool_run(pack_group, &job, (rows + 7) / 8);
}

// ---- reading back

static void unpack_row(int kind, const uint8_t *packed, int64_t row, int64_t blocks, float *out) {
    const uint8_t *group = packed + row / 8 * blocks * block_bytes(kind);
    int64_t lane = row % 8;
    for (int64_t b = 0; b < blocks; b++, group += block_bytes(kind), out += 32) {
        uint16_t half[2];
        memcpy(&half[0], group + 2 * lane, 2);
        float scale = half_to_float(half[0]);
        if (kind == Q8) {
            for (int j = 0; j < 8; j++)
                for (int i = 0; i < 4; i++) out[4 * j + i] = scale * (int8_t)group[16 + 32 * j + 4 * lane + i];
            continue;
        }
        memcpy(&half[1], group + 16 + 2 * lane, 2);
        float minimum = half_to_float(half[1]);
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 4; i++) {
                uint8_t byte = group[32 + 32 * j + 4 * lane + i];
                out[4 * j + i] = scale * (byte & 15) + minimum;
                out[16 + 4 * j + i] = scale * (byte >> 4) + minimum;
            }
    }
}

#if NW_X86
// The product is rounded before the sum, as in the reference, so that weights are the same bits on every path.
AVX2 static void unpack_row_avx2(int kind, const uint8_t *packed, int64_t row, int64_t blocks, float *out) {
    const uint8_t *group = packed + row / 8 * blocks * block_bytes(kind);
    int64_t lane = row % 8;
    const __m128i nibble = _mm_set1_epi32(0x0f0f0f0f);
    for (int64_t b = 0; b < blocks; b++, group += block_bytes(kind), out += 32) {
        uint16_t half[2];
        memcpy(&half[0], group + 2 * lane, 2);
        __m128 scale = _mm_set1_ps(_cvtsh_ss(half[0]));
        if (kind == Q8) {
            for (int j = 0; j < 8; j++) {
                int32_t four;
                memcpy(&four, group + 16 + 32 * j + 4 * lane, 4);
                __m128 w = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
                _mm_storeu_ps(out + 4 * j, _mm_mul_ps(scale, w));
            }
            continue;
        }
        memcpy(&half[1], group + 16 + 2 * lane, 2);
        __m128 minimum = _mm_set1_ps(_cvtsh_ss(half[1]));
        for (int j = 0; j < 4; j++) {
            int32_t four;
            memcpy(&four, group + 32 + 32 * j + 4 * lane, 4);
            __m128i bytes = _mm_cvtsi32_si128(four);
            __m128 low = _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_and_si128(bytes, nibble)));
            __m128 high = _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble)));
            __m128 a = _mm_mul_ps(scale, low), c = _mm_mul_ps(scale, high);
            __asm__("" : "+x"(a), "+x"(c));  // keeps the compiler from fusing product and sum
            _mm_storeu_ps(out + 4 * j, _mm_add_ps(a, minimum));
            _mm_storeu_ps(out + 16 + 4 * j, _mm_add_ps(c, minimum));
        }
    }
}
#endif

typedef struct {
    int kind;
    const uint8_t *packed;
    int64_t first, rows, blocks;
    const int64_t *ids;
    float *out;
} unpack_job;

#define UNPACK_ROWS 16

static void unpack_chunk(void *pointer, int64_t chunk) {
    unpack_job *job = pointer;
    int64_t end = (chunk + 1) * UNPACK_ROWS < job->rows ? (chunk + 1) * UNPACK_ROWS : job->rows;
    for (int64_t i = chunk * UNPACK_ROWS; i < end; i++) {
        int64_t row = job->ids ? job->ids[i] : job->first + i;
        float *out = job->out + i * job->blocks * 32;
#if NW_X86
        if (nw_level()) {
            unpack_row_avx2(job->kind, job->packed, row, job->blocks, out);
            continue;
        }
#endif
        unpack_row(job->kind, job->packed, row, job->blocks, out);
    }
}

// float32 rows `first` to `first + rows`, or the rows `ids` if given.
void nw_unpack(int kind, const uint8_t *packed, int64_t first, int64_t rows, int64_t width, const int64_t *ids, float *out) {
    unpack_job job = {kind, packed, first, rows, width / 32, ids, out};
    pool_run(unpack_chunk, &job, (rows + UNPACK_ROWS - 1) / UNPACK_ROWS);
}

// ---- activations to int8: x ~ scale * q, q in -127..127; `sum` is scale * sum(q). A NaN or infinity makes the scale NaN.

static void quantize_row(const float *x, int64_t blocks, int8_t *q, float *scale, float *sum, int32_t *total) {
    for (int64_t b = 0; b < blocks; b++, x += 32, q += 32) {
        float largest = 0, poison = 0;
        for (int i = 0; i < 32; i++) {
            float size = x[i] < 0 ? -x[i] : x[i];
            if (size > largest) largest = size;
            poison += x[i] * 0.0f;
        }
        float inverse = largest > 1e-35f && poison == 0 ? 127.0f / largest : 0;
        int32_t all = 0;
        for (int i = 0; i < 32; i++) {
            float scaled = poison == 0 ? x[i] * inverse : 0;
            int value = (int)__builtin_rintf(scaled);
            q[i] = (int8_t)(value > 127 ? 127 : value < -127 ? -127 : value);
            all += q[i];
        }
        scale[b] = largest / 127.0f + poison;
        if (!(largest > 1e-35f)) scale[b] = poison;
        total[b] = all;
        sum[b] = scale[b] * (float)all;
    }
}

#if NW_X86
AVX2 static void quantize_row_avx2(const float *x, int64_t blocks, int8_t *q, float *scale, float *sum, int32_t *total) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t b = 0; b < blocks; b++, x += 32, q += 32) {
        __m256 v[4], largest = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, v[i]));
            poison = _mm256_add_ps(poison, _mm256_mul_ps(v[i], _mm256_setzero_ps()));
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        float top = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        __m128 p = _mm_add_ps(_mm256_castps256_ps128(poison), _mm256_extractf128_ps(poison, 1));
        p = _mm_add_ps(p, _mm_movehl_ps(p, p));
        float bad = _mm_cvtss_f32(_mm_add_ss(p, _mm_movehdup_ps(p)));
        if (bad != 0 || !(top > 1e-35f)) {  // NaN compares unequal to zero
            quantize_row(x, 1, q, scale + b, sum + b, total + b);
            continue;
        }
        __m256 inverse = _mm256_set1_ps(127.0f / top);
        __m256i n[4];
        for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        __m256i all = _mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(bytes, order));
        scale[b] = top / 127.0f;
        total[b] = _mm_cvtsi128_si32(s);
        sum[b] = scale[b] * (float)total[b];
    }
}
#endif

// ---- the product

typedef struct {
    int kind;
    const uint8_t *packed;
    int64_t rows, blocks, batch, groups_a_chunk;
    const int8_t *q;      // (batch, width)
    const float *scale;   // (batch, blocks)
    const float *sum;     // (batch, blocks)
    const int32_t *total; // (batch, blocks)
    float *y;             // (batch, rows)
} product_job;

static void store_group(const product_job *job, int64_t group, int64_t at, const float *eight) {
    int64_t left = job->rows - 8 * group;
    memcpy(job->y + at * job->rows + 8 * group, eight, (size_t)(left < 8 ? left : 8) * sizeof(float));
}

static void group_portable(const product_job *job, int64_t group) {
    const uint8_t *start = job->packed + group * job->blocks * block_bytes(job->kind);
    for (int64_t at = 0; at < job->batch; at++) {
        float eight[8] = {0};
        const uint8_t *block = start;
        for (int64_t b = 0; b < job->blocks; b++, block += block_bytes(job->kind)) {
            const int8_t *q = job->q + (at * job->blocks + b) * 32;
            float scale = job->scale[at * job->blocks + b], sum = job->sum[at * job->blocks + b];
            for (int lane = 0; lane < 8; lane++) {
                uint16_t half;
                int32_t dot = 0;
                for (int j = 0; j < (job->kind == Q4 ? 4 : 8); j++)
                    for (int i = 0; i < 4; i++) {
                        uint8_t byte = block[(job->kind == Q4 ? 32 : 16) + 32 * j + 4 * lane + i];
                        if (job->kind == Q4) dot += (byte & 15) * q[4 * j + i] + (byte >> 4) * q[16 + 4 * j + i];
                        else dot += (int8_t)byte * q[4 * j + i];
                    }
                memcpy(&half, block + 2 * lane, 2);
                eight[lane] = __builtin_fmaf(half_to_float(half) * scale, (float)dot, eight[lane]);
                if (job->kind == Q4) {
                    memcpy(&half, block + 16 + 2 * lane, 2);
                    eight[lane] = __builtin_fmaf(half_to_float(half), sum, eight[lane]);
                }
            }
        }
        store_group(job, group, at, eight);
    }
}

#if NW_X86
#define BROADCAST(p) _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)(p)))
#define HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))

// One group of eight rows against `tile` activations from `at` on: weights are read and unpacked once.
#define GROUP_Q4(NAME, TARGET, DOT)                                                                         \
    INLINE TARGET void NAME(const product_job *job, int64_t group, int64_t at, const int tile) {            \
        const __m256i nibble = _mm256_set1_epi8(15);                                                        \
        const int64_t blocks = job->blocks;                                                                 \
        const uint8_t *block = job->packed + group * blocks * Q4_BLOCK;                                     \
        __m256 sums[8];                                                                                     \
        for (int t = 0; t < tile; t++) sums[t] = _mm256_setzero_ps();                                       \
        for (int64_t b = 0; b < blocks; b++, block += Q4_BLOCK) {                                           \
            __m256 scales = HALVES(block), minima = HALVES(block + 16);                                     \
            __m256i w[8];                                                                                   \
            for (int j = 0; j < 4; j++) {                                                                   \
                __m256i both = LOAD(block + 32 + 32 * j);                                                   \
                w[j] = _mm256_and_si256(both, nibble);                                                      \
                w[4 + j] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);                            \
            }                                                                                               \
            for (int t = 0; t < tile; t++) {                                                                \
                const int8_t *q = job->q + ((at + t) * blocks + b) * 32;                                    \
                __m256i dot = DOT(w, q);                                                                    \
                __m256 scale = _mm256_broadcast_ss(job->scale + (at + t) * blocks + b);                     \
                __m256 sum = _mm256_broadcast_ss(job->sum + (at + t) * blocks + b);                         \
                sums[t] = _mm256_fmadd_ps(_mm256_mul_ps(scales, scale), _mm256_cvtepi32_ps(dot), sums[t]);  \
                sums[t] = _mm256_fmadd_ps(minima, sum, sums[t]);                                            \
            }                                                                                               \
        }                                                                                                   \
        for (int t = 0; t < tile; t++) {                                                                    \
            float eight[8];                                                                                 \
            _mm256_storeu_ps(eight, sums[t]);                                                               \
            store_group(job, group, at + t, eight);                                                         \
        }                                                                                                   \
    }

#define GROUP_Q8(NAME, TARGET, DOT)                                                                         \
    INLINE TARGET void NAME(const product_job *job, int64_t group, int64_t at, const int tile) {            \
        const int64_t blocks = job->blocks;                                                                 \
        const uint8_t *block = job->packed + group * blocks * Q8_BLOCK;                                     \
        __m256 sums[8];                                                                                     \
        for (int t = 0; t < tile; t++) sums[t] = _mm256_setzero_ps();                                       \
        for (int64_t b = 0; b < blocks; b++, block += Q8_BLOCK) {                                           \
            __m256 scales = HALVES(block);                                                                  \
            __m256i w[8];                                                                                   \
            for (int j = 0; j < 8; j++) w[j] = LOAD(block + 16 + 32 * j);                                   \
            for (int t = 0; t < tile; t++) {                                                                \
                const int64_t place = (at + t) * blocks + b;                                                \
                __m256i dot = DOT(w, job->q + place * 32, job->total[place]);                               \
                __m256 scale = _mm256_broadcast_ss(job->scale + place);                                     \
                sums[t] = _mm256_fmadd_ps(_mm256_mul_ps(scales, scale), _mm256_cvtepi32_ps(dot), sums[t]);  \
            }                                                                                               \
        }                                                                                                   \
        for (int t = 0; t < tile; t++) {                                                                    \
            float eight[8];                                                                                 \
            _mm256_storeu_ps(eight, sums[t]);                                                               \
            store_group(job, group, at + t, eight);                                                         \
        }                                                                                                   \
    }

// Eight products of at most 2 * 15 * 127 are summed in int16: 30,480 fits.
INLINE AVX2 __m256i dot_q4_avx2(const __m256i *w, const int8_t *q) {
    __m256i sum = _mm256_maddubs_epi16(w[0], BROADCAST(q));
    for (int j = 1; j < 8; j++) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[j], BROADCAST(q + 4 * j)));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

// |w| times the activation with w's sign: 2 * 128 * 127 fits in int16 once, so each product is widened.
INLINE AVX2 __m256i dot_q8_avx2(const __m256i *w, const int8_t *q, int32_t total) {
    (void)total;
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
        __m256i product = _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(BROADCAST(q + 4 * j), w[j]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(product, _mm256_set1_epi16(1)));
    }
    return sum;
}

INLINE VNNI __m256i dot_q4_vnni(const __m256i *w, const int8_t *q) {
    __m256i one = _mm256_setzero_si256(), two = one;
    for (int j = 0; j < 8; j += 2) {
        one = _mm256_dpbusd_epi32(one, w[j], BROADCAST(q + 4 * j));
        two = _mm256_dpbusd_epi32(two, w[j + 1], BROADCAST(q + 4 * j + 4));
    }
    return _mm256_add_epi32(one, two);
}

// w + 128 is unsigned; 128 times the sum of the activations is taken off again.
INLINE VNNI __m256i dot_q8_vnni(const __m256i *w, const int8_t *q, int32_t total) {
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    __m256i one = _mm256_set1_epi32(-128 * total), two = _mm256_setzero_si256();
    for (int j = 0; j < 8; j += 2) {
        one = _mm256_dpbusd_epi32(one, _mm256_xor_si256(w[j], flip), BROADCAST(q + 4 * j));
        two = _mm256_dpbusd_epi32(two, _mm256_xor_si256(w[j + 1], flip), BROADCAST(q + 4 * j + 4));
    }
    return _mm256_add_epi32(one, two);
}

GROUP_Q4(group_q4_avx2, AVX2, dot_q4_avx2)
GROUP_Q8(group_q8_avx2, AVX2, dot_q8_avx2)
GROUP_Q4(group_q4_vnni, VNNI, dot_q4_vnni)
GROUP_Q8(group_q8_vnni, VNNI, dot_q8_vnni)

#define ALL_ACTIVATIONS(NAME, TARGET, GROUP, MOST)                        \
    TARGET static void NAME(const product_job *job, int64_t group) {      \
        int64_t at = 0;                                                   \
        for (; at + MOST <= job->batch; at += MOST) GROUP(job, group, at, MOST); \
        for (; at + 2 <= job->batch; at += 2) GROUP(job, group, at, 2);   \
        if (at < job->batch) GROUP(job, group, at, 1);                    \
    }

ALL_ACTIVATIONS(q4_avx2, AVX2, group_q4_avx2, 4)
ALL_ACTIVATIONS(q8_avx2, AVX2, group_q8_avx2, 4)
ALL_ACTIVATIONS(q4_vnni, VNNI, group_q4_vnni, 8)
ALL_ACTIVATIONS(q8_vnni, VNNI, group_q8_vnni, 8)
#endif

static void product_chunk(void *pointer, int64_t chunk) {
    const product_job *job = pointer;
    int64_t groups = (job->rows + 7) / 8, end = (chunk + 1) * job->groups_a_chunk;
    if (end > groups) end = groups;
    void (*work)(const product_job *, int64_t) = group_portable;
#if NW_X86
    if (nw_level() == LEVEL_VNNI) work = job->kind == Q4 ? q4_vnni : q8_vnni;
    else if (nw_level() == LEVEL_AVX2) work = job->kind == Q4 ? q4_avx2 : q8_avx2;
#endif
    for (int64_t group = chunk * job->groups_a_chunk; group < end; group++) work(job, group);
}

#define CHUNK_BYTES 32768

// y (batch, rows) = x (batch, width) times the packed matrix. Returns 0, or 1 when memory is short.
int nw_multiply(int kind, const uint8_t *packed, int64_t rows, int64_t width, const float *x, int64_t batch, float *y) {
    static _Thread_local void *held;
    static _Thread_local size_t held_size;
    int64_t blocks = width / 32, numbers = batch * blocks;
    char *room = scratch(&held, &held_size, (size_t)numbers * (32 + 12));
    if (!room) return 1;
    float *scale = (float *)room, *sum = scale + numbers;
    int32_t *total = (int32_t *)(sum + numbers);
    int8_t *q = (int8_t *)(total + numbers);
    for (int64_t at = 0; at < batch; at++) {
        int64_t b = at * blocks;
#if NW_X86
        if (nw_level()) {
            quantize_row_avx2(x + at * width, blocks, q + 32 * b, scale + b, sum + b, total + b);
            continue;
        }
#endif
        quantize_row(x + at * width, blocks, q + 32 * b, scale + b, sum + b, total + b);
    }
    int64_t group_bytes = blocks * block_bytes(kind), a_chunk = CHUNK_BYTES / group_bytes;
    if (a_chunk < 1) a_chunk = 1;
    product_job job = {kind, packed, rows, blocks, batch, a_chunk, q, scale, sum, total, y};
    pool_run(product_chunk, &job, ((rows + 7) / 8 + a_chunk - 1) / a_chunk);
    return 0;
}
