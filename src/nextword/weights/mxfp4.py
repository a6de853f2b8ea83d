"""MXFP4 matrices: blocks of 32 4-bit numbers with a power-of-two scale (OCP MX 1.0)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .mapping import Bytes

BLOCKS, SCALES = "_blocks", "_scales"  # suffixes of the names of a matrix's two tensors
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127  # of the scales' exponents


def dequantize(blocks: Bytes, scales: Bytes) -> NDArray[np.float32]:
    """Numbers (experts, rows, columns) from `blocks` (experts, rows, columns / 32, 16) and their `scales`.

    A byte holds two numbers, the first in its low half.
    """
    table = np.array([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], np.float32)
    values = np.empty((*blocks.shape[:-1], 32), np.float32)
    for expert, stored in enumerate(blocks):  # one at a time: the indices take memory too
        values[expert, ..., 0::2], values[expert, ..., 1::2] = table[stored & 15], table[stored >> 4]
        values[expert] = np.ldexp(values[expert], scales[expert, ..., None].astype(np.int32) - _BIAS)
    return values.reshape(*blocks.shape[:-2], -1)


def gguf_rows(blocks: Bytes, scales: Bytes) -> Bytes:
    """The same matrices as GGUF's mxfp4 blocks, (experts * rows, bytes per row), a copy.

    A GGUF block is its scale and 16 bytes, each with a number of the first 16 in its low half and one of the last 16
    in its high half.
    """
    rows, groups = int(np.prod(blocks.shape[:-2])), blocks.shape[-2]
    packed = np.empty((rows, groups, 17), np.uint8)
    stored = blocks.reshape(rows, groups, 16)
    low, high = stored & 15, stored >> 4
    packed[..., 0] = scales.reshape(rows, groups)
    packed[..., 1::2] = low[..., :8] | low[..., 8:] << 4
    packed[..., 2::2] = high[..., :8] | high[..., 8:] << 4
    return packed.reshape(rows, groups * 17)
