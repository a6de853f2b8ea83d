// What sampling computes of all logits of a row: the same bits on every instruction set.
#pragma once
#include "cpu.h"

#define GROUP 16  // logits of which the largest is kept, so that most of them need not be looked at again

// A row's logits are float64 if `wide`, otherwise float32.
INLINE double logit_at(const void *z, int wide, int64_t i) {
    return wide ? ((const double *)z)[i] : ((const float *)z)[i];
}

// The largest of each GROUP of logits into `peaks`, NaN left out; returns the largest of all.
double find_peaks(const void *z, int wide, int64_t width, double *peaks);

// The sum of the weights exp((z - largest) * scale); NaN if a logit is.
double sum_weights(const void *z, int wide, int64_t width, double largest, double scale);

// The weights of `count` logits into `w`; returns their sum.
double find_weights(const double *z, int64_t count, double largest, double scale, double *w);
