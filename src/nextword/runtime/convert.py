"""Rows of floats in another type."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..weights import floats

Rows = NDArray[np.uint8]


def convert_rows(values: NDArray[np.float32], dtype: str) -> tuple[str, Rows]:
    """Rows (rows, width) in the type of `dtype` or, where a row is not whole blocks of it, in one that fits."""
    width = values.shape[1]
    if dtype in ("auto", "float32"):
        return "f32", np.ascontiguousarray(values).view(np.uint8)
    if dtype in ("bfloat16", "float16"):
        return "bf16" if dtype == "bfloat16" else "f16", floats.encode(values, dtype).view(np.uint8)
    if width % 32:
        return "bf16", floats.encode(values, "bfloat16").view(np.uint8)
    from ..native.quantize import quantize

    kind = "q8_0" if width % 256 else dtype
    return kind, quantize(values, kind)
