"""MXFP4 matrices: blocks of 32 4-bit numbers with a power-of-two scale (OCP MX 1.0)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"  # suffixes of the names of a matrix's two tensors
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127  # of the scales' exponents


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """bfloat16 (experts, rows, columns) from `blocks` (experts, rows, columns / 32, 16) and their `scales`.

    Both are uint8. A byte holds two numbers, the first in its low half. Exact: all values fit bfloat16.
    """
    table = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=torch.bfloat16)
    numbers = torch.empty(*blocks.shape[:-1], 32, dtype=torch.bfloat16)
    for expert, stored in enumerate(blocks):  # one at a time: the indices take more memory than the result
        indices = torch.stack((stored & 15, stored >> 4), -1).flatten(-2)
        numbers[expert] = torch.ldexp(table[indices.int()], scales[expert].int().sub(_BIAS)[..., None])
    return numbers.flatten(-2)
