// Quantized rows times vectors of integers: the arithmetic of matmul.h, for now in plain C.
#include "matmul.h"

static float add_superblock(const plain_block *w, const activations *a, float sum) {
    int32_t total = 0, least = 0;
    for (int j = 0; j < 16; j++) {
        int32_t dot = 0;
        for (int i = 16 * j; i < 16 * j + 16; i++) dot += w->w[i] * a->q[i];
        total += a->multipliers[j / 2] * w->scales[j] * dot;
        least += w->minima[j] * a->sums[j];
    }
    sum = __builtin_fmaf(w->d * a->scale, (float)total, sum);
    return w->has_minima ? __builtin_fmaf(-(w->dmin * a->scale), (float)least, sum) : sum;
}

static float add_block(const plain_block *w, const activations *a, int b, float sum) {
    int32_t dot = 0;
    for (int i = 0; i < 32; i++) dot += w->w[i] * a->q[32 * b + i];
    sum = __builtin_fmaf(w->d * a->scales[b], (float)dot, sum);
    return w->has_minima ? __builtin_fmaf(-w->dmin, a->float_sums[b], sum) : sum;
}

static float row_times_vector(const segment_job *job, const uint8_t *row, const activations *a) {
    const block_size size = block_of(job->type);
    float sum = 0;
    for (int64_t at = 0; at < job->width; at += size.columns, row += size.bytes) {
        plain_block block = {0};
        read_block(job->type, row, &block);
        const activations *here = a + at / SUPERBLOCK;
        sum = size.columns == 32 ? add_block(&block, here, (int)(at % SUPERBLOCK / 32), sum)
                                 : add_superblock(&block, here, sum);
    }
    return sum;
}

void multiply_few_plain(const segment_job *job, int64_t row, int64_t end) {
    for (; row < end; row++)
        for (int64_t t = 0; t < job->batch; t++)
            store_sum(job, row, t, row_times_vector(job, job->data + row * job->row_bytes, job->a + t * job->superblocks));
}

void multiply_quantized(const segment_job *job, int64_t row, int64_t end) {
#if NW_X86
    if (nw_level() == LEVEL_VNNI) return multiply_few_vnni(job, row, end);
    if (nw_level() == LEVEL_AVX2) return multiply_few_avx2(job, row, end);
#endif
    multiply_few_plain(job, row, end);
}
