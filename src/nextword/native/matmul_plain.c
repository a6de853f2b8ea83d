// The kernels of matrix products in plain C, for any processor.
#pragma GCC optimize("O2")  // for the compiler's sake: -O3 takes it several times as long
#define VECTOR_PLAIN
#define NAME(function) function##_plain
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_floats.inc"

// Speed is not what this path is for: many vectors go the way of few.
void multiply_many_plain(const segment_job *job, int64_t row, int64_t end) { multiply_few_plain(job, row, end); }
