// Rounds float32 columns to the types of GGUF files.
#pragma once
#include "quant_types.h"

// 256 columns of finite numbers as one superblock of Q2_K to Q6_K.
void quantize_superblock(int64_t type, const float *x, void *block);
