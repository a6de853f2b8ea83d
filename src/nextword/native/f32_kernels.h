// The float32 kernels, compiled for each instruction set (f32_avx2.c, f32_neon.c, f32_portable.c).
#pragma once
#include "attention.h"
#include "causal_attention.h"
#include "cpu.h"
#include "elementwise.h"
#include "recurrent.h"

#define SPLIT 256  // positions whose scores share a largest one and a sum

// A query, the positions of a split that it sees (from <= p < to), its scores (SPLIT,), and what it leaves: the values
// weighted by exp(score - largest), (padded_width,), then the largest score, then the sum of the weights.
typedef struct {
    const float *vector;
    int64_t from, to;
    float *scores, *partial;
} query;

// Queries over one split. Groups of eight positions lie wherever their pages are.
typedef struct {
    const query *queries;
    int64_t count, start, end;  // positions that any query sees lie between multiples of eight, start and end
    const char *keys[SPLIT / 8], *values[SPLIT / 8];
    int64_t kv_type, width;
    int one_token;  // all queries see the same positions
    float scale, softcap;
    float *tile;  // (tile_numbers(width),)
} split_job;

INLINE int64_t padded_width(int64_t width) { return (width + 7) / 8 * 8; }

#define TILE_NUMBERS 4096  // converted keys or values that stay in the first-level cache while every query passes

INLINE int64_t tile_groups(int64_t width) {
    const int64_t groups = TILE_NUMBERS / (8 * padded_width(width));
    return groups > 1 ? groups : 1;
}
INLINE int64_t tile_numbers(int64_t width) { return tile_groups(width) * 8 * padded_width(width); }

// Of training, compiled for AVX-512 too (f32_avx512.c); each takes a chunk of its job.
typedef struct {
    // Some queries of a head, the last queries first; all queries of a key head.
    chunk_function attend_chunk, attend_backward;
    chunk_function swiglu, swiglu_backward, rope, rope_backward, entropy;
} training_kernels;

#define TRAINING_KERNELS {attend_chunk, attend_backward, swiglu, swiglu_backward, rope, rope_backward, entropy}

typedef struct {
    // Converts a key into lane `lane` of its group of eight positions, or a value into its row.
    void (*store_key)(int64_t kv_type, const float *x, int64_t width, char *group, int64_t lane);
    void (*store_value)(int64_t kv_type, const float *x, int64_t width, char *row);
    void (*attend_to_split)(const split_job *job);
    // Adds a query's next partial result to its state, which is one, or zeros with a largest score of -infinity.
    void (*add_partial)(const float *partial, int64_t padded, float *state);
    // y = the state's weighted values / sum, to which exp(*sink) belongs if not NULL
    void (*finish)(const float *state, int64_t width, const float *sink, float *y);
    void (*normalize_row)(const norm *n, const float *x, int64_t width, float *y);
    // y = f(x), times `up` if not NULL
    void (*activate_row)(activation_function f, const float *x, const float *up, int64_t width, float *y);
    void (*soft_cap)(float *z, int64_t count, float cap);  // z = cap tanh(z / cap)
    // Units `from` to `to` of one sequence.
    void (*advance_units)(cell_kind kind, const gate_row *row, int64_t from, int64_t to);
    training_kernels training;
} f32_kernels;

#define F32_KERNELS                                                                    \
    {                                                                                  \
        store_key, store_value, attend_to_split, add_partial, finish, normalize_row,   \
        activate_row, soft_cap, advance_units, TRAINING_KERNELS,                       \
    }

const f32_kernels *find_f32_kernels(void);
const training_kernels *find_training_kernels(void);
