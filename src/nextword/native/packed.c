// Rows of GGUF blocks into packed order, and back to float32. See matrix.h for the layout.
#include "cpu.h"
#include "matrix.h"
#include "pool.h"

EXPORT int64_t nw_packed_bytes(int kind, int64_t rows, int64_t width) {
    return (rows + 7) / 8 * (width / 32) * block_bytes(kind);
}

// ---- packing

typedef struct {
    int kind;
    const uint8_t *source;
    int64_t rows, blocks;
    uint8_t *out;
} pack_job;

static void pack_group(void *pointer, int64_t group) {
    const pack_job *job = pointer;
    const int64_t stored = job->kind == Q8_0 ? 34 : job->kind == Q4_1 ? 20 : 18;
    const int64_t bytes = block_bytes(job->kind), head = block_head(job->kind);
    const int vectors = job->kind == Q8_0 ? 8 : 4;
    uint8_t *out = job->out + group * job->blocks * bytes;
    int64_t left = job->rows - 8 * group, lanes = left < 8 ? left : 8;
    if (lanes < 8) memset(out, 0, (size_t)(job->blocks * bytes));
    for (int64_t b = 0; b < job->blocks; b++, out += bytes)
        for (int64_t lane = 0; lane < lanes; lane++) {
            const uint8_t *from = job->source + ((8 * group + lane) * job->blocks + b) * stored;
            memcpy(out + 2 * lane, from, 2);
            if (job->kind == Q4_1) memcpy(out + 16 + 2 * lane, from + 2, 2);
            from += job->kind == Q4_1 ? 4 : 2;
            for (int j = 0; j < vectors; j++) memcpy(out + head + 32 * j + 4 * lane, from + 4 * j, 4);
        }
}

EXPORT void nw_pack(int kind, const uint8_t *source, int64_t rows, int64_t width, uint8_t *out) {
    pack_job job = {kind, source, rows, width / 32, out};
    pool_run(pack_group, &job, (rows + 7) / 8);
}

// ---- reading back. Product and sum are rounded one after the other, as gguf does: the weights are the same bits.

static void unpack_row(int kind, const uint8_t *packed, int64_t row, int64_t blocks, float *out) {
    const uint8_t *block = packed + row / 8 * blocks * block_bytes(kind);
    int64_t lane = row % 8;
    for (int64_t b = 0; b < blocks; b++, block += block_bytes(kind), out += 32) {
        const uint8_t *bytes = block + block_head(kind) + 4 * lane;
        float scale = load_half(block + 2 * lane), minimum = kind == Q4_1 ? load_half(block + 16 + 2 * lane) : 0;
        int middle = kind == Q4_0 ? 8 : 0;
        for (int j = 0; j < (kind == Q8_0 ? 8 : 4); j++)
            for (int i = 0; i < 4; i++) {
                uint8_t byte = bytes[32 * j + i];
                if (kind == Q8_0) {
                    out[4 * j + i] = scale * (int8_t)byte;
                    continue;
                }
                out[4 * j + i] = scale * ((byte & 15) - middle) + minimum;
                out[16 + 4 * j + i] = scale * ((byte >> 4) - middle) + minimum;
            }
    }
}

#if NW_X86
AVX2 static void unpack_row_avx2(int kind, const uint8_t *packed, int64_t row, int64_t blocks, float *out) {
    const uint8_t *block = packed + row / 8 * blocks * block_bytes(kind);
    int64_t lane = row % 8;
    const __m128i nibble = _mm_set1_epi32(0x0f0f0f0f), middle = _mm_set1_epi32(kind == Q4_0 ? 8 : 0);
    for (int64_t b = 0; b < blocks; b++, block += block_bytes(kind), out += 32) {
        const uint8_t *bytes = block + block_head(kind) + 4 * lane;
        __m128 scale = _mm_set1_ps(load_half(block + 2 * lane));
        __m128 minimum = _mm_set1_ps(kind == Q4_1 ? load_half(block + 16 + 2 * lane) : 0);
        for (int j = 0; j < (kind == Q8_0 ? 8 : 4); j++) {
            int32_t four;
            memcpy(&four, bytes + 32 * j, 4);
            __m128i w = _mm_cvtsi32_si128(four);
            if (kind == Q8_0) {
                _mm_storeu_ps(out + 4 * j, _mm_mul_ps(scale, _mm_cvtepi32_ps(_mm_cvtepi8_epi32(w))));
                continue;
            }
            __m128i low = _mm_sub_epi32(_mm_cvtepu8_epi32(_mm_and_si128(w, nibble)), middle);
            __m128i high = _mm_sub_epi32(_mm_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(w, 4), nibble)), middle);
            _mm_storeu_ps(out + 4 * j, _mm_add_ps(_mm_mul_ps(scale, _mm_cvtepi32_ps(low)), minimum));
            _mm_storeu_ps(out + 16 + 4 * j, _mm_add_ps(_mm_mul_ps(scale, _mm_cvtepi32_ps(high)), minimum));
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
EXPORT void nw_unpack(int kind, const uint8_t *packed, int64_t first, int64_t rows, int64_t width, const int64_t *ids,
               float *out) {
    unpack_job job = {kind, packed, first, rows, width / 32, ids, out};
    pool_run(unpack_chunk, &job, (rows + UNPACK_ROWS - 1) / UNPACK_ROWS);
}
