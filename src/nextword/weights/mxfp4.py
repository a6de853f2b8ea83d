"""MXFP4 matrices of a safetensors folder: 4-bit numbers in blocks of 32 with a power of two for scale (OCP MX, 1.0)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"  # what the names of a matrix's two tensors end with
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127  # of the scales' exponents


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """The numbers, bfloat16 (experts, rows, columns), of `blocks` (experts, rows, columns / 32, 16) and their `scales`.

    Both are uint8. A byte holds two numbers, the first in its low half. Exact: bfloat16 has all of these numbers.
    """
    table = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=torch.bfloat16)
    numbers = torch.empty(*blocks.shape[:-1], 32, dtype=torch.bfloat16)
    for expert, stored in enumerate(blocks):  # one at a time: the indices take more room than the numbers
        indices = torch.stack((stored & 15, stored >> 4), -1).flatten(-2)
        numbers[expert] = torch.ldexp(table[indices.int()], scales[expert].int().sub(_BIAS)[..., None])
    return numbers.flatten(-2)
