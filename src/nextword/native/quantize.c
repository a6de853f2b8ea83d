// Converts the rows of a matrix from one type to another. Blocks of 32 get the bytes of gguf-py's quantize.
#include "quantize.h"

#include <math.h>

#include "cpu.h"
#include "pool.h"

enum { SLICE = 256, CHUNK = 1 << 16 };  // columns at a time; columns in a chunk of work

static float inverse(float x) { return x == 0.0f || !isfinite(1.0f / x) ? 0.0f : 1.0f / x; }

// ---- blocks of 32: levels on both sides of zero, with the largest number on the lowest, or between the extremes

static float largest(const float *x) {
    float found = 0.0f;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(found)) found = x[i];
    return found;
}

static void extremes(const float *x, float *low, float *high) {
    *low = *high = x[0];
    for (int i = 1; i < 32; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

// q = (x - zero) / d + middle, rounded half up, at most `most`
static void round_block(const float *x, float zero, float d, float middle, int most, uint8_t *q) {
    const float per_step = inverse(d);
    for (int i = 0; i < 32; i++) {
        int level = (int)((x[i] - zero) * per_step + (middle + 0.5f));
        q[i] = (uint8_t)(level < most ? level : most);
    }
}

static void pack_nibbles(const uint8_t *q, uint8_t *to) {
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)((q[i] & 15) | q[16 + i] << 4);
}

static void pack_fifth_bits(const uint8_t *q, uint8_t *to) {
    memset(to, 0, 4);
    for (int i = 0; i < 32; i++) to[i / 8] |= (uint8_t)(q[i] >> 4 << i % 8);
}

static void to_q4_0(const float *x, block_q4_0 *to) {
    uint8_t q[32];
    const float d = largest(x) / -8.0f;
    round_block(x, 0.0f, d, 8.0f, 15, q);
    to->d = float_to_half(d);
    pack_nibbles(q, to->nibbles);
}

static void to_q4_1(const float *x, block_q4_1 *to) {
    uint8_t q[32];
    float low, high;
    extremes(x, &low, &high);
    const float d = (high - low) / 15.0f;
    round_block(x, low, d, 0.0f, 15, q);
    to->d = float_to_half(d);
    to->m = float_to_half(low);
    pack_nibbles(q, to->nibbles);
}

static void to_q5_0(const float *x, block_q5_0 *to) {
    uint8_t q[32];
    const float d = largest(x) / -16.0f;
    round_block(x, 0.0f, d, 16.0f, 31, q);
    to->d = float_to_half(d);
    pack_fifth_bits(q, to->high);
    pack_nibbles(q, to->nibbles);
}

static void to_q5_1(const float *x, block_q5_1 *to) {
    uint8_t q[32];
    float low, high;
    extremes(x, &low, &high);
    const float d = (high - low) / 31.0f;
    round_block(x, low, d, 0.0f, 31, q);
    to->d = float_to_half(d);
    to->m = float_to_half(low);
    pack_fifth_bits(q, to->high);
    pack_nibbles(q, to->nibbles);
}

static void to_q8_0(const float *x, block_q8_0 *to) {
    const float d = fabsf(largest(x)) / 127.0f, per_step = inverse(d);
    to->d = float_to_half(d);
    for (int i = 0; i < 32; i++) to->q[i] = (int8_t)roundf(x[i] * per_step);
}

static void quantize_block(int64_t type, const float *x, void *to) {
    switch (type) {
        case Q4_0: to_q4_0(x, to); break;
        case Q4_1: to_q4_1(x, to); break;
        case Q5_0: to_q5_0(x, to); break;
        case Q5_1: to_q5_1(x, to); break;
        case Q8_0: to_q8_0(x, to); break;
        default: quantize_superblock(type, x, to);
    }
}

// ---- rows

static void write_halves(half (*rounded)(float), const float *x, int64_t columns, char *to) {
    for (int64_t i = 0; i < columns; i++) {
        const half value = rounded(x[i]);
        memcpy(to + 2 * i, &value, 2);
    }
}

static int all_finite(const float *x, int columns) {
    float sum = 0.0f;
    for (int i = 0; i < columns; i++) sum += x[i] * 0.0f;
    return sum == 0.0f;
}

static void write_blocks(int64_t type, const float *x, int64_t columns, char *to) {
    const block_size block = block_of(type);
    for (int64_t i = 0; i < columns; i += block.columns, to += block.bytes) {
        if (all_finite(x + i, block.columns)) quantize_block(type, x + i, to);
        else memset(to, 0xff, (size_t)block.bytes);  // which makes every scale NaN: the error must stay visible
    }
}

static void write_columns(int64_t type, const float *x, int64_t columns, char *to) {
    switch (type) {
        case F32: memcpy(to, x, (size_t)columns * 4); break;
        case F16: write_halves(float_to_half, x, columns, to); break;
        case BF16: write_halves(float_to_bfloat, x, columns, to); break;
        default: write_blocks(type, x, columns, to);
    }
}

typedef struct {
    int64_t from, to, count, width, rows;  // rows in a chunk
    const char *stored;
    char *converted;
} convert_job;

static void convert_row(const convert_job *job, int64_t row) {
    const char *stored = job->stored + row * row_bytes(job->from, job->width);
    char *converted = job->converted + row * row_bytes(job->to, job->width);
    float x[SLICE];
    for (int64_t first = 0; first < job->width; first += SLICE) {
        const int64_t columns = job->width - first < SLICE ? job->width - first : SLICE;
        dequantize_row(job->from, stored + row_bytes(job->from, first), columns, x);
        write_columns(job->to, x, columns, converted + row_bytes(job->to, first));
    }
}

static void convert_chunk(void *p, int64_t chunk) {
    const convert_job *job = p;
    const int64_t end = (chunk + 1) * job->rows < job->count ? (chunk + 1) * job->rows : job->count;
    for (int64_t row = chunk * job->rows; row < end; row++) convert_row(job, row);
}

// `count` rows of `width` numbers from one weight_type to another: F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K.
EXPORT void nw_convert_rows(int64_t from, const void *stored, int64_t count, int64_t width, int64_t to, void *converted) {
    convert_job job = {from, to, count, width, width < CHUNK ? CHUNK / width : 1, stored, converted};
    pool_run(convert_chunk, &job, (count + job.rows - 1) / job.rows);
}
