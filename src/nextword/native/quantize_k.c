// Superblocks of 256 columns: w = d * scale * q - dmin * minimum, with an integer scale (and minimum) for each group of
// 16 or 32 columns.
//
// The squared error is minimized in alternation: q is the nearest integer to given scales, and given q, scale and
// minimum (of a group, then d and dmin of the superblock) are a least-squares fit. Each group is fitted from several
// steps between the levels, because the alternation only finds the minimum nearest to where it starts.
//
// Four groups are searched side by side, one in each lane of a vector that every processor has: the bytes are the same
// on all of them, and the search is not worth a version for wider vectors.
#include "quantize.h"

#include <math.h>

#include "cpu.h"

enum { COLUMNS = 256, LANES = 4, STEPS = 9, ROUNDS = 2 };

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

// How a type stores numbers: columns in a group, and the ranges of q, scale and minimum.
typedef struct {
    int group, low, high, scale_low, scale_high, minimum_high;
} layout;

static const layout Q2 = {16, 0, 3, 0, 15, 15}, Q3 = {16, -4, 3, -32, 31, 0}, Q4 = {32, 0, 15, 0, 63, 63},
                    Q5 = {32, 0, 31, 0, 63, 63}, Q6 = {16, -32, 31, -128, 127, 0};

typedef struct {
    float d, dmin, error;
    lanes scale[4], minimum[4];  // integers, of groups 0 to 7 and 8 to 15
} superblock;

typedef struct {
    lanes q, qq, xq;  // sums of q, q^2, x q
} sums;

// The scale and minimum of groups before they are rounded, and how much smaller the squared error is than that of zeros.
typedef struct {
    lanes step, offset, gain;
} fit;

INLINE lanes all(float x) { return (lanes){x, x, x, x}; }

INLINE lanes choose(mask where, lanes yes, lanes no) { return (lanes)((where & (mask)yes) | (~where & (mask)no)); }

INLINE lanes lower(lanes a, lanes b) { return choose(a < b, a, b); }
INLINE lanes higher(lanes a, lanes b) { return choose(a > b, a, b); }

INLINE float total(lanes x) { return (x[0] + x[2]) + (x[1] + x[3]); }

INLINE lanes inverse(lanes x) { return choose((x > 1e-37f) | (x < -1e-37f), 1.0f / x, all(0.0f)); }

// The nearest integer within the limits, which are below 2^22.
INLINE lanes nearest(lanes x, int low, int high) {
    const float shift = 12582912.0f;  // 1.5 * 2^23
    return higher(lower(x, all((float)high)), all((float)low)) + shift - shift;
}

INLINE lanes levels(const layout *as, lanes x, lanes offset, lanes per_step) {
    return nearest((x + offset) * per_step, as->low, as->high);
}

static sums sums_at(const layout *as, const lanes *x, lanes offset, lanes per_step) {
    sums s = {0};
    for (int i = 0; i < as->group; i++) {
        lanes q = levels(as, x[i], offset, per_step);
        s.q += q;
        s.qq += q * q;
        s.xq += x[i] * q;
    }
    return s;
}

// sum of (x + offset - step * q)^2
static lanes error_at(const layout *as, const lanes *x, lanes offset, lanes step) {
    lanes error = all(0.0f), per_step = inverse(step);
    for (int i = 0; i < as->group; i++) {
        lanes rest = x[i] + offset - step * levels(as, x[i], offset, per_step);
        error += rest * rest;
    }
    return error;
}

// The step, and the offset >= 0 if the type has one, that minimize sum (x - step q + offset)^2.
static fit least_squares(const layout *as, sums s, lanes x) {
    lanes step = s.xq * inverse(s.qq);
    const fit without = {step, all(0.0f), step * s.xq};
    if (!as->minimum_high) return without;
    const lanes count = all((float)as->group), scale = inverse(count * s.qq - s.q * s.q);
    const lanes offset = (s.q * s.xq - s.qq * x) * scale;
    step = (count * s.xq - s.q * x) * scale;
    const mask valid = (offset > 0.0f) & (step > 0.0f);
    return (fit){choose(valid, step, without.step), choose(valid, offset, without.offset),
                 choose(valid, step * s.xq - offset * x, without.gain)};
}

INLINE void keep_better(fit found, fit *best) {
    const mask better = found.gain > best->gain;
    best->step = choose(better, found.step, best->step);
    best->offset = choose(better, found.offset, best->offset);
    best->gain = choose(better, found.gain, best->gain);
}

static fit fit_groups(const layout *as, const lanes *x) {
    lanes low = all(0.0f), high = all(0.0f), sum = all(0.0f);
    for (int i = 0; i < as->group; i++) {
        low = lower(low, x[i]);
        high = higher(high, x[i]);
        sum += x[i];
    }
    const lanes largest = choose(high > -low, high, low), offset = as->minimum_high ? -low : all(0.0f);
    const lanes per_level = inverse(as->minimum_high ? high - low : largest);
    fit best = {0};
    for (int k = 0; k < STEPS; k++) {
        float count = (float)(as->minimum_high ? as->high : as->low) + 0.25f * (float)(k - STEPS / 2);
        keep_better(least_squares(as, sums_at(as, x, offset, count * per_level), sum), &best);
    }
    keep_better(least_squares(as, sums_at(as, x, best.offset, inverse(best.step)), sum), &best);
    return best;
}

// Integer scales and minima of four groups near the wanted ones, for given d and dmin.
static void round_scales(const layout *as, const lanes *x, fit wanted, superblock *b, int part) {
    const lanes scale = nearest(wanted.step * inverse(all(b->d)), as->scale_low, as->scale_high);
    const lanes minimum = nearest(wanted.offset * inverse(all(b->dmin)), 0, as->minimum_high);
    lanes best = all(INFINITY);
    for (int s = -1; s <= 1; s++)
        for (int m = as->minimum_high ? -1 : 0; m <= (as->minimum_high ? 1 : 0); m++) {
            lanes scale_ = nearest(scale + (float)s, as->scale_low, as->scale_high);
            lanes minimum_ = nearest(minimum + (float)m, 0, as->minimum_high);
            lanes error = error_at(as, x, b->dmin * minimum_, b->d * scale_);
            mask better = error < best;
            best = choose(better, error, best);
            b->scale[part] = choose(better, scale_, b->scale[part]);
            b->minimum[part] = choose(better, minimum_, b->minimum[part]);
        }
    b->error += total(best);
}

// d and dmin that minimize sum (x - d a + dmin b)^2, from the sums {a a, a b, b b}, x a and x b.
static void solve(const float products[3], float xa, float xb, superblock *block) {
    const float aa = products[0], ab = products[1], bb = products[2], determinant = aa * bb - ab * ab;
    if (determinant > 1e-6f * aa * bb) {
        block->d = (xa * bb - ab * xb) / determinant;
        block->dmin = (xa * ab - aa * xb) / determinant;
    } else if (aa > 0.0f) block->d = (xa + block->dmin * ab) / aa;
}

// Least-squares d and dmin, given all integers: w = d a - dmin b with a = scale q, b = minimum.
static void refit(const layout *as, const lanes (*x)[32], superblock *block) {
    lanes aa = all(0.0f), ab = all(0.0f), bb = all(0.0f), xa = all(0.0f), xb = all(0.0f);
    for (int part = 0; part < 64 / as->group; part++) {
        const lanes scale = block->scale[part], minimum = block->minimum[part];
        const sums s = sums_at(as, x[part], block->dmin * minimum, inverse(block->d * scale));
        aa += scale * scale * s.qq;
        ab += scale * minimum * s.q;
        bb += minimum * minimum * (float)as->group;
        xa += scale * s.xq;
        for (int i = 0; i < as->group; i++) xb += x[part][i] * minimum;
    }
    solve((float[]){total(aa), total(ab), total(bb)}, total(xa), total(xb), block);
}

static void start(const layout *as, const fit *wanted, superblock *b) {
    float step = 0.0f, offset = 0.0f;
    for (int j = 0; j < COLUMNS / as->group; j++) {
        const fit *of = &wanted[j / LANES];
        if (fabsf(of->step[j % LANES]) > fabsf(step)) step = of->step[j % LANES];
        if (of->offset[j % LANES] > offset) offset = of->offset[j % LANES];
    }
    b->d = step / (float)(as->scale_low ? as->scale_low : as->scale_high);
    b->dmin = as->minimum_high ? offset / (float)as->minimum_high : 0.0f;
}

static void search(const layout *as, const lanes (*x)[32], superblock *best) {
    const int parts = 64 / as->group;
    fit wanted[4];
    superblock b = {0};
    for (int part = 0; part < parts; part++) wanted[part] = fit_groups(as, x[part]);
    start(as, wanted, &b);
    best->error = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        b.d = half_to_float(float_to_half(b.d));
        b.dmin = half_to_float(float_to_half(b.dmin));
        b.error = 0.0f;
        for (int part = 0; part < parts; part++) round_scales(as, x[part], wanted[part], &b, part);
        if (b.error < best->error) *best = b;
        refit(as, x, &b);
    }
}

static void quantize(const layout *as, const float *columns, superblock *b, uint8_t *q) {
    lanes x[4][32];
    for (int i = 0; i < COLUMNS; i++) {
        const int group = i / as->group;
        x[group / LANES][i % as->group][group % LANES] = columns[i];
    }
    search(as, x, b);
    for (int part = 0; part < 64 / as->group; part++)
        for (int i = 0; i < as->group; i++) {
            lanes level = levels(as, x[part][i], b->dmin * b->minimum[part], inverse(b->d * b->scale[part]));
            for (int lane = 0; lane < LANES; lane++)
                q[(part * LANES + lane) * as->group + i] = (uint8_t)((int)level[lane] - as->low);
        }
}

static const layout *layout_of(int64_t type) {
    switch (type) {
        case Q2_K: return &Q2;
        case Q3_K: return &Q3;
        case Q4_K: return &Q4;
        case Q5_K: return &Q5;
        default: return &Q6;
    }
}

// ---- packing: q are unsigned, from 0

static void pack_nibbles(const uint8_t *q, uint8_t *to) {  // 64 columns in 32 bytes
    for (int i = 0; i < COLUMNS / 2; i++) to[i] = (uint8_t)((q[i / 32 * 64 + i % 32] & 15) | q[i / 32 * 64 + 32 + i % 32] << 4);
}

static void pack_pairs(const uint8_t *q, int shift, uint8_t *to) {  // two bits of 128 columns in 32 bytes
    memset(to, 0, COLUMNS / 4);
    for (int i = 0; i < COLUMNS; i++) to[i / 128 * 32 + i % 32] |= (uint8_t)((q[i] >> shift & 3) << i / 32 % 4 * 2);
}

static void pack_bit(const uint8_t *q, int shift, uint8_t *to) {  // one bit of 256 columns in 32 bytes
    memset(to, 0, COLUMNS / 8);
    for (int i = 0; i < COLUMNS; i++) to[i % 32] |= (uint8_t)((q[i] >> shift & 1) << i / 32);
}

static int scale(const superblock *b, int group) { return (int)b->scale[group / LANES][group % LANES]; }

static int minimum(const superblock *b, int group) { return (int)b->minimum[group / LANES][group % LANES]; }

// Eight scales and minima of six bits: the first four whole, and in their free upper bits those of the last four.
static void pack_scales(const superblock *b, uint8_t *to) {
    for (int j = 0; j < 4; j++) {
        to[j] = (uint8_t)(scale(b, j) | scale(b, j + 4) >> 4 << 6);
        to[j + 4] = (uint8_t)(minimum(b, j) | minimum(b, j + 4) >> 4 << 6);
        to[j + 8] = (uint8_t)((scale(b, j + 4) & 15) | (minimum(b, j + 4) & 15) << 4);
    }
}

static void pack_q2(const superblock *b, const uint8_t *q, block_q2_k *to) {
    to->d = float_to_half(b->d);
    to->dmin = float_to_half(b->dmin);
    for (int j = 0; j < 16; j++) to->scales[j] = (uint8_t)(scale(b, j) | minimum(b, j) << 4);
    pack_pairs(q, 0, to->bits);
}

static void pack_q3(const superblock *b, const uint8_t *q, block_q3_k *to) {
    to->d = float_to_half(b->d);
    memset(to->scales, 0, sizeof to->scales);
    for (int j = 0; j < 16; j++) {  // six bits: four in the first eight bytes, two in the last four
        int wide = scale(b, j) + 32;
        to->scales[j % 8] |= (uint8_t)((wide & 15) << j / 8 * 4);
        to->scales[8 + j % 4] |= (uint8_t)(wide >> 4 << j / 4 * 2);
    }
    pack_pairs(q, 0, to->bits);
    pack_bit(q, 2, to->high);
}

static void pack_q4(const superblock *b, const uint8_t *q, block_q4_k *to) {
    to->d = float_to_half(b->d);
    to->dmin = float_to_half(b->dmin);
    pack_scales(b, to->scales);
    pack_nibbles(q, to->nibbles);
}

static void pack_q5(const superblock *b, const uint8_t *q, block_q5_k *to) {
    to->d = float_to_half(b->d);
    to->dmin = float_to_half(b->dmin);
    pack_scales(b, to->scales);
    pack_bit(q, 4, to->high);
    pack_nibbles(q, to->nibbles);
}

static void pack_q6(const superblock *b, const uint8_t *q, block_q6_k *to) {
    to->d = float_to_half(b->d);
    for (int j = 0; j < 16; j++) to->scales[j] = (int8_t)scale(b, j);
    for (int i = 0; i < COLUMNS / 2; i++)  // 128 columns in 64 bytes
        to->nibbles[i] = (uint8_t)((q[i / 64 * 128 + i % 64] & 15) | q[i / 64 * 128 + 64 + i % 64] << 4);
    pack_pairs(q, 4, to->high);
}

void quantize_superblock(int64_t type, const float *x, void *block) {
    superblock b;
    uint8_t q[COLUMNS];
    quantize(layout_of(type), x, &b, q);
    switch (type) {
        case Q2_K: pack_q2(&b, q, block); break;
        case Q3_K: pack_q3(&b, q, block); break;
        case Q4_K: pack_q4(&b, q, block); break;
        case Q5_K: pack_q5(&b, q, block); break;
        case Q6_K: pack_q6(&b, q, block); break;
    }
}
