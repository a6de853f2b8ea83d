// The kernels of matrix products in plain C, for any processor.
#define VECTOR_PLAIN
#define NAME(function) function##_plain
#include "matmul_activations.inc"
#include "matmul_few.inc"
#include "matmul_panel.inc"
#include "matmul_floats.inc"
