"""Floating-point numbers as files store them: bytes ↔ float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LAYOUTS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "f64": "<f8"}  # bf16: the upper half of a float32
FLOATS = tuple(_LAYOUTS)
KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # PyTorch's names → GGUF's


def decode(kind: str, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes (..., n) of one of FLOATS as float32 (..., n / bytes of a number), a copy."""
    numbers: NDArray[Any] = stored.view(_LAYOUTS[kind])
    if kind == "bf16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers.astype(np.float32)


def encode(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`values` in float32, float16 or bfloat16 (as uint16), rounded to nearest, ties to even."""
    if dtype == "bfloat16":
        return _bfloat16(np.ascontiguousarray(values))
    if dtype == "float16":
        with np.errstate(over="ignore"):  # what exceeds the range becomes infinite, as in PyTorch
            return values.astype(np.float16)
    return values


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
