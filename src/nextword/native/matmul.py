"""Matrix products with weights as GGUF files store them: numpy in and out.

The structures mirror those of matrix.h.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bindings import library

TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12,
    "q5_k": 13, "q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "bf16": 30, "mxfp4": 39,
}  # fmt: skip
MAX_SEGMENTS = 16  # of a matrix, see matmul.c


class SegmentStruct(Structure):
    """`segment` of matrix.h."""

    _fields_ = (("type", c_int64), ("rows", c_int64), ("data", c_void_p))


class MatrixStruct(Structure):
    """`matrix` of matrix.h. It keeps its segments alive, and not the arrays that they point to."""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int64),
        ("segment_count", c_int64),
        ("segments", POINTER(SegmentStruct)),
        ("bias", c_void_p),
    )


def row_bytes(type: str, width: int) -> int:
    """Bytes of a row of `width` numbers. Raises ValueError for a type or a width that the kernels do not take."""
    if type not in TYPES:
        raise ValueError(f"the CPU kernels do not read {type}; they read {', '.join(TYPES)}")
    size: int = library().nw_row_bytes(TYPES[type], width)
    if not size:
        raise ValueError(f"a row of {width} numbers is not whole blocks of {type}")
    return size


@dataclass(frozen=True)
class Segment:
    """Rows of one tensor as a file stores them: uint8 (rows, bytes per row), with contiguous rows."""

    type: str
    data: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.data.shape[0])


class Matrix:
    """A (rows, width) matrix: segments on top of each other, and a bias float32 (rows,) if any.

    Nothing is copied: `data` of the segments may be a view of a mapped file. `struct` is what C takes; it is valid as
    long as this object lives.
    """

    def __init__(self, width: int, segments: list[Segment], bias: NDArray[np.float32] | None = None) -> None:
        self.width, self.segments, self.bias = width, tuple(segments), bias
        self.rows = sum(segment.rows for segment in segments)
        for segment in segments:
            _check_segment(segment, width)
        if not 0 < len(segments) <= MAX_SEGMENTS:
            raise ValueError(f"a matrix has 1 to {MAX_SEGMENTS} segments, not {len(segments)}")
        if bias is not None and (bias.dtype != np.float32 or bias.shape != (self.rows,) or not bias.flags.c_contiguous):
            raise ValueError(f"a bias is contiguous float32 ({self.rows},), not {bias.dtype} {bias.shape}")
        stored = (SegmentStruct * len(segments))(
            *(SegmentStruct(TYPES[s.type], s.rows, s.data.ctypes.data) for s in segments)
        )
        self.struct = MatrixStruct(self.rows, width, len(segments), stored, None if bias is None else bias.ctypes.data)

    def __reduce__(self) -> Any:  # addresses cannot be copied
        return Matrix, (self.width, list(self.segments), self.bias)

    @classmethod
    def from_float32(cls, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None) -> Matrix:
        """A float32 (rows, width) matrix, without a copy where it is contiguous."""
        data = np.ascontiguousarray(weight, np.float32)
        return cls(data.shape[1], [Segment("f32", data.view(np.uint8))], bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(segment.data.nbytes for segment in self.segments)

    def __repr__(self) -> str:
        return f"Matrix({'+'.join(segment.type for segment in self.segments)}, {self.rows} x {self.width})"

    def multiply(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x W^T + bias: float32 (batch, width) → (batch, rows). Raises MemoryError when memory is short."""
        if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"takes float32 (batch, {self.width}), not {x.dtype} {x.shape}")
        x = np.ascontiguousarray(x)
        y = np.empty((x.shape[0], self.rows), np.float32)
        if library().nw_multiply(byref(self.struct), x.ctypes.data, x.shape[0], y.ctypes.data, 0):
            raise MemoryError(f"not enough memory to multiply {x.shape[0]} vectors of {self.width}")
        return y

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows `ids` (count,) as float32 (count, width). Raises IndexError for an id outside the matrix."""
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.rows:
            raise IndexError(f"a row id is outside 0 to {self.rows - 1}")
        y = np.empty((ids.size, self.width), np.float32)
        library().nw_embed_rows(byref(self.struct), ids.ctypes.data, ids.size, y.ctypes.data)
        return y

    def dequantize(self) -> NDArray[np.float32]:
        """All rows as float32 (rows, width)."""
        return self.embed(np.arange(self.rows))


def _check_segment(segment: Segment, width: int) -> None:
    data, size = segment.data, row_bytes(segment.type, width)
    if data.dtype != np.uint8 or data.ndim != 2 or not data.flags.c_contiguous:
        raise ValueError(f"a segment is contiguous uint8 (rows, bytes), not {data.dtype} {data.shape}")
    if data.shape[1] != size:
        raise ValueError(f"a {segment.type} row of width {width} has {size} bytes, not {data.shape[1]}")
