// 32 bytes of small integers: the few operations that the kernels of quantized matrices are written in, with those on
// eight floats of vector_f32.h.
//
// A file that includes this is compiled for one instruction set, named by one of VECTOR_AVX2, VECTOR_VNNI, VECTOR_NEON
// and VECTOR_PLAIN. All give the same integers and the same floats. "Halves" of a vector are its 16 bytes each; no
// operation but the sums of rows crosses them.
#pragma once
#include "cpu.h"

#if defined(VECTOR_AVX2) || defined(VECTOR_VNNI)
#include "vector_avx2.h"
#elif defined(VECTOR_NEON)
#include "vector_neon.h"
#else
#include "vector_plain.h"
#endif

#if defined(VECTOR_PLAIN)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

// The sums of four vectors' halves, the four first halves before the second ones.
INLINE vint sum_halves(const vint *v) { return add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3])); }

// The sums of eight vectors.
INLINE vint sum_vectors(const vint *v) { return add_swapped(sum_halves(v), sum_halves(v + 4)); }
