// Products of every type at level argv[1] against those of portable code: exits with 1 where bits differ.
//
// Stands in for module.c, so that instruction sets can be tested which this processor has only by emulation.
#include <stdio.h>

#include "cpu.h"
#include "matrix.h"

static int level;

int nw_level(void) { return level; }

static const int64_t types[] = {F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS};

enum { ROWS = 37, WIDTH = 512, BATCH = 21 };

static uint32_t state = 1;
static uint32_t draw(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

// Random bytes without the exponents of halves and floats that are not finite.
static void fill(uint8_t *bytes, int64_t size) {
    for (int64_t i = 0; i < size; i++) bytes[i] = draw() & 0xbf;
}

static int differs(int64_t type, int wanted) {
    static uint8_t data[ROWS * WIDTH * 4];
    static float x[BATCH * WIDTH], y[2][BATCH * ROWS], bias[ROWS];
    fill(data, sizeof data);
    for (int i = 0; i < BATCH * WIDTH; i++) x[i] = ((float)draw() - 8388608) * (draw() % 7 ? 1e-7f : 1e-5f);
    for (int i = 0; i < ROWS; i++) bias[i] = (float)draw();
    const segment s = {type, ROWS, data};
    const matrix m = {ROWS, WIDTH, 1, &s, bias};
    for (int64_t batch = 1; batch <= BATCH; batch++) {
        for (int i = 0; i < 2; i++) {
            level = i ? wanted : PORTABLE;
            if (multiply(&m, x, batch, y[i], 0)) return 1;
        }
        if (!memcmp(y[0], y[1], (size_t)(batch * ROWS) * sizeof(float))) continue;
        printf("type %d, %d vectors\n", (int)type, (int)batch);
        return 1;
    }
    return 0;
}

int main(int count, char **arguments) {
    int wrong = 0;
    for (size_t i = 0; count == 2 && i < sizeof types / sizeof *types; i++) wrong |= differs(types[i], atoi(arguments[1]));
    return wrong || count != 2;
}
