// The kernels of matrix products, compiled for NEON.
#include "matmul.h"

#if defined(__aarch64__)
#define VECTOR_NEON
#define NAME(function) function##_neon
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_panel.inc"
#include "matmul_floats.inc"
#endif
