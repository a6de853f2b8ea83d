// What training computes between its matrix products, forward and backward, on rows of float32.
//
// Torch runs each of these as several operators, every one a pass over memory that leaves a tensor behind. Here each
// is one pass, and what the backward pass can form again from its input is not kept. Chunks depend on the shapes
// alone and sums are added in their order, so that results do not depend on the number of threads.
#include <math.h>

#include "cpu.h"
#include "pool.h"

#define CHUNK_NUMBERS 16384
#define FEWEST_ROWS 16  // a chunk of the norm's backward pass leaves a row of sums; they shall not outweigh its work
#define BODY static inline __attribute__((always_inline))

// The same loop compiled twice; the compiler makes vectors of it. Without contraction both give the same bits.
#if NW_X86
#define COMPILED_TWICE(name) \
    AVX2 static void name##_avx2(void *job, int64_t chunk) { name##_rows(job, chunk); } \
    static void name##_plain(void *job, int64_t chunk) { name##_rows(job, chunk); } \
    static chunk_function name(void) { return nw_level() ? name##_avx2 : name##_plain; }
#else
#define COMPILED_TWICE(name) \
    static chunk_function name(void) { return name##_rows; }
#endif

static int64_t rows_of_a_chunk(int64_t width) { return CHUNK_NUMBERS / width + 1; }

static int64_t chunks_of(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

BODY int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- RMSNorm: y = x r w, r = 1 / sqrt(mean(x^2) + eps)

typedef struct {
    const float *x, *weight, *through;
    int64_t rows, width, each;
    float eps, *y, *inverse, *dx, *sums;
} norm_job;

BODY float sum_of_products(const float *a, const float *b, const float *c, int64_t width) {
    float part[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) part[j] += a[i + j] * b[i + j] * (c ? c[i + j] : 1.0f);
    for (; i < width; i++) sum += a[i] * b[i] * (c ? c[i] : 1.0f);
    for (int j = 0; j < 16; j++) sum += part[j];
    return sum;
}

BODY void norm_rows(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    int64_t width = job->width, row = chunk * job->each, end = least(row + job->each, job->rows);
    const float *restrict weight = job->weight;
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width;
        float *restrict y = job->y + row * width;
        float r = 1.0f / sqrtf(sum_of_products(x, x, NULL, width) / (float)width + job->eps);
        job->inverse[row] = r;
        for (int64_t i = 0; i < width; i++) y[i] = x[i] * r * weight[i];
    }
}
COMPILED_TWICE(norm)

// dx = r w dy - x r^3 / width sum(w dy x) + through; y takes the place of dy; a chunk's dy x r are summed in its row.
BODY void norm_back_rows(void *pointer, int64_t chunk) {
    const norm_job *job = pointer;
    int64_t width = job->width, row = chunk * job->each, end = least(row + job->each, job->rows);
    const float *restrict weight = job->weight;
    float *restrict sums = job->sums + chunk * width;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (; row < end; row++) {
        const float *restrict x = job->x + row * width, *restrict through = job->through + row * width;
        float *restrict dy = job->y + row * width, *restrict dx = job->dx + row * width;
        float r = job->inverse[row], slope = sum_of_products(x, dy, weight, width) * r * r * r / (float)width;
        if (job->through)
            for (int64_t i = 0; i < width; i++) dx[i] = dy[i] * weight[i] * r - x[i] * slope + through[i];
        else
            for (int64_t i = 0; i < width; i++) dx[i] = dy[i] * weight[i] * r - x[i] * slope;
        for (int64_t i = 0; i < width; i++) {
            float normed = x[i] * r;
            sums[i] += dy[i] * normed;
            dy[i] = normed * weight[i];
        }
    }
}
COMPILED_TWICE(norm_back)

EXPORT void nw_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y, float *inverse,
                    int threads) {
    norm_job job = {x, weight, NULL, rows, width, rows_of_a_chunk(width), eps, y, inverse, NULL, NULL};
    pool_share(norm(), &job, chunks_of(rows, job.each), threads);
}

static int64_t rows_back(int64_t width) {
    int64_t each = rows_of_a_chunk(width);
    return each < FEWEST_ROWS ? FEWEST_ROWS : each;
}

// How many rows of sums nw_norm_back needs room for.
EXPORT int64_t nw_norm_sums(int64_t rows, int64_t width) { return chunks_of(rows, rows_back(width)); }

// `dy` becomes y, `sums`' first row the gradient of the weight; `through`, added to dx, may be NULL.
EXPORT void nw_norm_back(const float *x, const float *weight, float *inverse, const float *through, int64_t rows,
                         int64_t width, float *dy, float *dx, float *sums, int threads) {
    norm_job job = {x, weight, through, rows, width, rows_back(width), 0, dy, inverse, dx, sums};
    int64_t chunks = chunks_of(rows, job.each);
    pool_share(norm_back(), &job, chunks, threads);
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        for (int64_t i = 0; i < width; i++) sums[i] += sums[chunk * width + i];
}

// ---- exp, Cephes' expf as in elementwise.h, between -87 and 88; NaN stays NaN

// The bounds are variables: of constants the compiler works out what follows from them as a case of its own, in which
// x / (1 + exp(88)) is a subnormal number, and computes that for every x: four times slower.
float nw_least_exponent = -87.0f, nw_most_exponent = 88.0f;

BODY float exponential(float x, float least, float most) {
    x = x < least ? least : x;
    x = x > most ? most : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number: 1.5 * 2^23 has no fraction
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = (int32_t)((uint32_t)((int32_t)n + 127) << 23)};
    return p * power.value;
}

// ---- SwiGLU: h = g / (1 + exp(-g)) u, g and u side by side in a row

typedef struct {
    const float *gates;
    int64_t rows, width, each;
    float *h, *d;
} gate_job;

BODY void gate_rows(void *pointer, int64_t chunk) {
    const gate_job *job = pointer;
    int64_t width = job->width, row = chunk * job->each, end = least(row + job->each, job->rows);
    for (; row < end; row++) {
        const float *restrict gate = job->gates + row * 2 * width, *restrict up = gate + width;
        float *restrict h = job->h + row * width, low = nw_least_exponent, high = nw_most_exponent;
        for (int64_t i = 0; i < width; i++) h[i] = gate[i] / (1.0f + exponential(-gate[i], low, high)) * up[i];
    }
}
COMPILED_TWICE(gate)

// h takes the place of its gradient.
BODY void gate_back_rows(void *pointer, int64_t chunk) {
    const gate_job *job = pointer;
    int64_t width = job->width, row = chunk * job->each, end = least(row + job->each, job->rows);
    for (; row < end; row++) {
        const float *restrict gate = job->gates + row * 2 * width, *restrict up = gate + width;
        float *restrict h = job->h + row * width, *restrict d = job->d + row * 2 * width, *restrict d_up = d + width;
        float low = nw_least_exponent, high = nw_most_exponent;
        for (int64_t i = 0; i < width; i++) {
            float g = gate[i], sigmoid = 1.0f / (1.0f + exponential(-g, low, high)), silu = g * sigmoid, dh = h[i];
            d[i] = dh * up[i] * (sigmoid + silu * (1.0f - sigmoid));
            d_up[i] = dh * silu;
            h[i] = silu * up[i];
        }
    }
}
COMPILED_TWICE(gate_back)

EXPORT void nw_gate(const float *gates, int64_t rows, int64_t width, float *h, int threads) {
    gate_job job = {gates, rows, width, rows_of_a_chunk(3 * width), h, NULL};
    pool_share(gate(), &job, chunks_of(rows, job.each), threads);
}

// `h` holds its gradient when called and h when done; `d` becomes the gradient of `gates`.
EXPORT void nw_gate_back(const float *gates, int64_t rows, int64_t width, float *h, float *d, int threads) {
    gate_job job = {gates, rows, width, rows_of_a_chunk(3 * width), h, d};
    pool_share(gate_back(), &job, chunks_of(rows, job.each), threads);
}

// ---- rotary positions, on the leading heads of rows of `heads` heads

typedef struct {
    const float *part;  // gradients of queries, keys or values: (batch, time, heads, head_width), by these strides
    int64_t heads, batch_stride, time_stride, head_stride;
} gradient;

typedef struct {
    int64_t batch, time, heads, turned, head_width, rotary_width;
    const float *cosine, *sine;
    int64_t table_stride;  // from one batch row's angles to the next's, 0 where all stand at the same positions
} turning;

typedef struct {
    const turning *how;
    const gradient *parts;
    int64_t each;
    float *x;
} turn_job;

// (a, b) -> (a cos + b sin, b cos' + a sin'), signs being in the table (see rotary.py), of `in` or else of `out` itself.
// The turn back is the transposed matrix: the two sines changed over.
BODY void turn_head(const float *c, const float *s_of_b, const float *s_of_a, int64_t half, const float *in, float *out) {
    float *restrict low = out, *restrict high = out + half;
    const float *from_low = in ? in : low, *from_high = in ? in + half : high;
    for (int64_t i = 0; i < half; i++) {
        float a = from_low[i], b = from_high[i];
        low[i] = a * c[i] + b * s_of_b[i];
        high[i] = b * c[half + i] + a * s_of_a[i];
    }
}

BODY void turn_rows(void *pointer, int64_t chunk) {
    const turn_job *job = pointer;
    const turning *how = job->how;
    int64_t row = chunk * job->each, end = least(row + job->each, how->batch * how->time), half = how->rotary_width / 2;
    for (; row < end; row++) {
        int64_t place = row / how->time * how->table_stride + row % how->time * how->rotary_width;
        const float *cosine = how->cosine + place, *sine = how->sine + place;
        float *x = job->x + row * how->heads * how->head_width;
        for (int64_t head = 0; head < how->turned; head++, x += how->head_width)
            turn_head(cosine, sine, sine + half, half, NULL, x);
    }
}
COMPILED_TWICE(turn)

// The gradients of queries, keys and values, the first two turned back, side by side again.
BODY void turn_back_rows(void *pointer, int64_t chunk) {
    const turn_job *job = pointer;
    const turning *how = job->how;
    int64_t row = chunk * job->each, end = least(row + job->each, how->batch * how->time), half = how->rotary_width / 2;
    int64_t width = how->head_width;
    for (; row < end; row++) {
        int64_t b = row / how->time, t = row % how->time, place = b * how->table_stride + t * how->rotary_width;
        const float *cosine = how->cosine + place, *sine = how->sine + place;
        float *out = job->x + row * how->heads * width;
        int64_t done = 0;
        for (const gradient *part = job->parts; part < job->parts + 3; part++) {
            const float *in = part->part + b * part->batch_stride + t * part->time_stride;
            for (int64_t head = 0; head < part->heads; head++, done++, in += part->head_stride, out += width) {
                int64_t still = 0;
                if (done < how->turned) {
                    turn_head(cosine, sine + half, sine, half, in, out);
                    still = how->rotary_width;
                }
                memcpy(out + still, in + still, (size_t)(width - still) * sizeof *out);
            }
        }
    }
}
COMPILED_TWICE(turn_back)

EXPORT void nw_turn(const turning *how, float *x, int threads) {
    turn_job job = {how, NULL, rows_of_a_chunk(how->heads * how->head_width), x};
    pool_share(turn(), &job, chunks_of(how->batch * how->time, job.each), threads);
}

EXPORT void nw_turn_back(const turning *how, const gradient *parts, float *dx, int threads) {
    turn_job job = {how, parts, rows_of_a_chunk(how->heads * how->head_width), dx};
    pool_share(turn_back(), &job, chunks_of(how->batch * how->time, job.each), threads);
}

// ---- cross-entropy of rows of logits

typedef struct {
    const int64_t *targets;
    int64_t rows, width, each, ignored;
    int wanted;
    float *logits, *losses;
} entropy_job;

BODY float largest(const float *x, int64_t width) {
    float part[16], most = x[0];
    int64_t i = 0;
    for (int j = 0; j < 16; j++) part[j] = x[0];
    for (; i + 16 <= width; i += 16)
        for (int j = 0; j < 16; j++) part[j] = part[j] > x[i + j] ? part[j] : x[i + j];
    for (; i < width; i++) most = most > x[i] ? most : x[i];
    for (int j = 0; j < 16; j++) most = most > part[j] ? most : part[j];
    return most;
}

// Each exp where the logit was, and their sum.
BODY float exponentials(float *x, int64_t width, float most, int keep) {
    float part[16] = {0}, sum = 0, low = nw_least_exponent, high = nw_most_exponent;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        float e[16];
        for (int j = 0; j < 16; j++) e[j] = exponential(x[i + j] - most, low, high);
        for (int j = 0; j < 16; j++) part[j] += e[j];
        if (keep)
            for (int j = 0; j < 16; j++) x[i + j] = e[j];
    }
    for (; i < width; i++) {
        float e = exponential(x[i] - most, low, high);
        sum += e;
        if (keep) x[i] = e;
    }
    for (int j = 0; j < 16; j++) sum += part[j];
    return sum;
}

BODY void entropy_rows(void *pointer, int64_t chunk) {
    const entropy_job *job = pointer;
    int64_t width = job->width, row = chunk * job->each, end = least(row + job->each, job->rows);
    for (; row < end; row++) {
        float *x = job->logits + row * width;
        int64_t target = job->targets[row];
        if (target == job->ignored) {
            job->losses[row] = 0;
            if (job->wanted) memset(x, 0, (size_t)width * sizeof *x);
            continue;
        }
        float most = largest(x, width), own = x[target], sum = exponentials(x, width, most, job->wanted);
        job->losses[row] = logf(sum) + most - own;
        if (!job->wanted) continue;
        float scale = 1.0f / sum;
        for (int64_t i = 0; i < width; i++) x[i] *= scale;
        x[target] -= 1.0f;
    }
}
COMPILED_TWICE(entropy)

// -ln softmax(logits)[target] of each row, 0 where the target is `ignored`; with `wanted`, logits become its gradient.
EXPORT void nw_entropy(float *logits, const int64_t *targets, int64_t rows, int64_t width, int64_t ignored, int wanted,
                       float *losses, int threads) {
    entropy_job job = {targets, rows, width, rows_of_a_chunk(width), ignored, wanted, logits, losses};
    pool_share(entropy(), &job, chunks_of(rows, job.each), threads);
}
