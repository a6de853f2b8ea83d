// Fixed inputs through the kernels: a line "name hash" for each, the same on every processor and instruction set.
// Argument: the level of instructions, as in cpu.h.
#include <stdio.h>

#include "attention.h"
#include "causal_attention.h"
#include "elementwise.h"
#include "matrix.h"
#include "pool.h"

void nw_force_level(int level);

static uint32_t state = 1;

static uint32_t next_random(void) { return state = state * 1664525u + 1013904223u; }

static void fill(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = (float)(next_random() >> 8) / (1 << 22) - 2.0f;
}

static void report(const char *name, const void *bytes, size_t count) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
    printf("%s %016llx\n", name, (unsigned long long)hash);
}

// A chunk of 40 tokens, then one more.
static void check_attention(const char *name, weight_type kv_type, float softcap, int interleaved) {
    enum { HEADS = 6, KV_HEADS = 2, WIDTH = 64, TOKENS = 41, PAGE = 24, ROWS = HEADS + 2 * KV_HEADS };
    static float qkv[TOKENS * ROWS * WIDTH], cosine[TOKENS * WIDTH], sine[TOKENS * WIDTH], y[TOKENS * HEADS * WIDTH];
    static char keys[2 * KV_HEADS * PAGE * WIDTH * 4], values[sizeof keys];
    int64_t positions[TOKENS], sequences[TOKENS] = {0};
    const int32_t pages[] = {1, 0};
    float sinks[HEADS];
    fill(qkv, TOKENS * ROWS * WIDTH);
    fill(cosine, TOKENS * WIDTH);
    fill(sine, TOKENS * WIDTH);
    fill(sinks, HEADS);
    for (int64_t i = 0; i < TOKENS; i++) positions[i] = i;
    placement at = {positions, sequences, pages, TOKENS - 1, 2, PAGE};
    const int64_t page_bytes = KV_HEADS * PAGE * row_bytes(kv_type, WIDTH);
    attention a = {
        .qkv = qkv, .rope = {cosine, sine, WIDTH / 2, interleaved}, .keys = keys, .values = values,
        .page_bytes = page_bytes, .kv_type = kv_type, .at = &at, .heads = HEADS, .kv_heads = KV_HEADS, .width = WIDTH,
        .window = 30, .scale = 0.125f, .softcap = softcap, .sinks = sinks, .y = y,
    };
    if (attend(&a)) return;
    at.positions += TOKENS - 1;
    at.tokens = 1;
    a.qkv += (TOKENS - 1) * ROWS * WIDTH;
    a.y += (TOKENS - 1) * HEADS * WIDTH;
    if (attend(&a)) return;
    report(name, y, sizeof y);
    report("  its keys", keys, (size_t)(2 * page_bytes));
}

// Training's, forward and backward, with a window.
static void check_causal_attention(const char *name, int64_t bfloat16) {
    enum { HEADS = 4, KV_HEADS = 2, WIDTH = 24, TIME = 150, ROWS = HEADS + 2 * KV_HEADS };
    static float qkv[TIME * ROWS * WIDTH], grads[TIME * ROWS * WIDTH], out[TIME * HEADS * WIDTH], first[TIME];
    static float out_grad[TIME * HEADS * WIDTH], log_sums[HEADS * TIME];
    fill(qkv, TIME * ROWS * WIDTH);
    fill(out_grad, TIME * HEADS * WIDTH);
    for (int64_t i = 0; bfloat16 && i < TIME * ROWS * WIDTH; i++) ((uint16_t *)(void *)qkv)[i] = float_to_bfloat(qkv[i]);
    for (int64_t i = 0; i < TIME; i++) first[i] = i < 90 ? 0 : (float)(i - 90);
    const int64_t size = bfloat16 ? 2 : 4;
#define PART(x, head, count) {(char *)(x) + (head) * WIDTH * size, bfloat16, count, 0, ROWS * WIDTH, WIDTH}
#define WHOLE(x) {x, 0, HEADS, 0, HEADS * WIDTH, WIDTH}
    causal_attention a = {
        .batch = 1, .time = TIME, .width = WIDTH, .scale = 0.2f, .first_keys = first,
        .queries = PART(qkv, 0, HEADS), .keys = PART(qkv, HEADS, KV_HEADS),
        .values = PART(qkv, HEADS + KV_HEADS, KV_HEADS), .out = WHOLE(out), .log_sums = log_sums,
        .out_grad = WHOLE(out_grad), .query_grad = PART(grads, 0, HEADS), .key_grad = PART(grads, HEADS, KV_HEADS),
        .value_grad = PART(grads, HEADS + KV_HEADS, KV_HEADS),
    };
    if (!nw_causal_attention(&a, 1) || !nw_causal_attention_backward(&a, 1)) return;
    report(name, out, sizeof out);
    report("  its gradients", grads, (size_t)(TIME * ROWS * WIDTH * size));
}

// Training's passes over rows; declared as in elementwise.c and cross_entropy.c.
void nw_swiglu(const void *, int, int64_t, int64_t, void *, int);
void nw_swiglu_backward(const void *, int, int64_t, int64_t, void *, void *, int);
void nw_rope(const rope_shape *, void *, int, int);
int nw_cross_entropy(void *, int, const int64_t *, int64_t, int64_t, int64_t, int, float *, int);

static void check_training_rows(const char *name, int bfloat16) {
    enum { ROWS = 9, WIDTH = 85, HEADS = 5, HEAD_WIDTH = 34 };
    static float x[ROWS * 2 * WIDTH], h[ROWS * WIDTH], dx[ROWS * 2 * WIDTH], angles[2 * ROWS * HEAD_WIDTH], losses[ROWS];
    int64_t targets[ROWS];
    const size_t size = bfloat16 ? 2 : 4;
    fill(x, ROWS * 2 * WIDTH);
    fill(angles, 2 * ROWS * HEAD_WIDTH);
    for (int64_t i = 0; i < ROWS; i++) targets[i] = 7 * i;
    for (int64_t i = 0; bfloat16 && i < ROWS * 2 * WIDTH; i++) ((uint16_t *)(void *)x)[i] = float_to_bfloat(x[i]);
    nw_swiglu(x, bfloat16, ROWS, WIDTH, h, 1);
    report(name, h, ROWS * WIDTH * size);
    nw_swiglu_backward(x, bfloat16, ROWS, WIDTH, h, dx, 1);
    report("  its gradient", dx, ROWS * 2 * WIDTH * size);
    const rope_shape shape = {1, ROWS, HEADS, 3, HEAD_WIDTH, HEAD_WIDTH, angles, angles + ROWS * HEAD_WIDTH, 0};
    nw_rope(&shape, x, bfloat16, 1);
    report("  rope", x, ROWS * 2 * WIDTH * size);
    if (!nw_cross_entropy(x, bfloat16, targets, ROWS, 2 * WIDTH, 14, 1, losses, 1)) return;
    report("  gradient of cross-entropy", x, ROWS * 2 * WIDTH * size);
}

static void check_layer_ops(void) {
    enum { ROWS = 3, WIDTH = 83 };
    static float x[ROWS * 2 * WIDTH], weight[WIDTH], bias[WIDTH], y[ROWS * WIDTH];
    const char *names[] = {"silu", "gelu", "gelu tanh", "clamped swiglu"};
    fill(x, ROWS * 2 * WIDTH);
    fill(weight, WIDTH);
    fill(bias, WIDTH);
    normalize(&(norm){weight, NULL, 1, 1e-5f}, x, ROWS, WIDTH, y);
    report("rms norm", y, sizeof y);
    normalize(&(norm){weight, bias, 0, 1e-5f}, x, ROWS, WIDTH, y);
    report("layer norm", y, sizeof y);
    for (int f = SILU; f <= SWIGLU_CLAMPED; f++) {
        activate((activation_function)f, 1, x, ROWS, WIDTH, y);
        report(names[f], y, sizeof y);
    }
}

// Quantized rows are random bytes, with scales of about 1 where a type has halves first.
static void check_multiply(const char *name, int64_t type, int64_t batch) {
    enum { ROWS = 19, WIDTH = 512, BATCH = 20 };
    static uint8_t data[ROWS * WIDTH * 4];
    static float x[BATCH * WIDTH], y[BATCH * ROWS];
    const int64_t bytes = row_bytes(type, WIDTH), block = type == Q8_0 ? 34 : type == Q4_1 ? 20 : 144;
    for (int64_t i = 0; i < ROWS * bytes; i++) data[i] = (uint8_t)(next_random() >> 24);
    if (type == F32) fill((float *)(void *)data, ROWS * WIDTH);
    for (int64_t i = 0; type != F32 && i < ROWS * bytes; i += block) {
        data[i + 1] = 0x3c;
        if (type != Q8_0) data[i + 3] = 0x38;
    }
    fill(x, batch * WIDTH);
    const segment whole = {type, ROWS, data};
    if (multiply(&(matrix){ROWS, WIDTH, 1, &whole, NULL}, x, batch, y, 0)) return;
    report(name, y, (size_t)(batch * ROWS) * sizeof(float));
}

int main(int count, char **arguments) {
    nw_force_level(count > 1 ? atoi(arguments[1]) : -1);
    check_attention("attention, float32", F32, 0, 0);
    check_attention("attention, float16", F16, 20.0f, 1);
    check_attention("attention, q8_0", Q8_0, 0, 1);
    check_causal_attention("causal attention, float32", 0);
    check_causal_attention("causal attention, bfloat16", 1);
    check_training_rows("swiglu, float32", 0);
    check_training_rows("swiglu, bfloat16", 1);
    check_layer_ops();
    for (int64_t batch = 1; batch <= 20; batch += 19) {
        check_multiply("float32 product", F32, batch);
        check_multiply("q4_1 product", Q4_1, batch);
        check_multiply("q8_0 product", Q8_0, batch);
        check_multiply("q4_k product", Q4_K, batch);
    }
    return 0;
}
