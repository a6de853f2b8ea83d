"""Converts rows of weights from one of GGUF's types to another, on all threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .bindings import library
from .matmul import TYPES, row_bytes

TARGETS = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def quantize(values: NDArray[np.float32], to: str) -> NDArray[np.uint8]:
    """float32 (rows, width) as rows of type `to`, uint8 (rows, bytes per row).

    A block with a number that is not finite becomes NaN. Raises ValueError for a type not in TARGETS, and for a width
    that is not whole blocks of it.
    """
    rows = np.ascontiguousarray(values, np.float32)
    return convert_rows(rows.view(np.uint8), "f32", to, rows.shape[1])


def convert_rows(stored: NDArray[np.uint8], stored_as: str, to: str, width: int) -> NDArray[np.uint8]:
    """Stored rows of `width` numbers, uint8 (rows, bytes per row), as rows of another type.

    Only a few columns at a time become float32. Raises ValueError as `quantize` does.
    """
    if to not in TARGETS:
        raise ValueError(f"nothing is converted to {to}; known: {', '.join(TARGETS)}")
    if stored.ndim != 2 or stored.shape[1] != row_bytes(stored_as, width):
        raise ValueError(
            f"a {stored_as} row of width {width} has {row_bytes(stored_as, width)} bytes, not {stored.shape}"
        )
    stored = np.ascontiguousarray(stored)
    converted = np.empty((len(stored), row_bytes(to, width)), np.uint8)
    library().nw_convert_rows(
        TYPES[stored_as], stored.ctypes.data, len(stored), width, TYPES[to], converted.ctypes.data
    )
    return converted
