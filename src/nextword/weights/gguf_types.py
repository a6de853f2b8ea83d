"""The tensor types of GGUF, and a tensor as a header describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class BlockType(NamedTuple):
    """How a tensor type stores numbers: `values` numbers in `nbytes` bytes."""

    name: str
    values: int
    nbytes: int


# The numbers are ggml's; a test compares them with the gguf package's table.
BLOCK_TYPES = {
    0: BlockType("f32", 1, 4),
    1: BlockType("f16", 1, 2),
    2: BlockType("q4_0", 32, 18),
    3: BlockType("q4_1", 32, 20),
    6: BlockType("q5_0", 32, 22),
    7: BlockType("q5_1", 32, 24),
    8: BlockType("q8_0", 32, 34),
    9: BlockType("q8_1", 32, 40),
    10: BlockType("q2_k", 256, 84),
    11: BlockType("q3_k", 256, 110),
    12: BlockType("q4_k", 256, 144),
    13: BlockType("q5_k", 256, 176),
    14: BlockType("q6_k", 256, 210),
    15: BlockType("q8_k", 256, 292),
    16: BlockType("iq2_xxs", 256, 66),
    17: BlockType("iq2_xs", 256, 74),
    18: BlockType("iq3_xxs", 256, 98),
    19: BlockType("iq1_s", 256, 50),
    20: BlockType("iq4_nl", 32, 18),
    21: BlockType("iq3_s", 256, 110),
    22: BlockType("iq2_s", 256, 82),
    23: BlockType("iq4_xs", 256, 136),
    24: BlockType("i8", 1, 1),
    25: BlockType("i16", 1, 2),
    26: BlockType("i32", 1, 4),
    27: BlockType("i64", 1, 8),
    28: BlockType("f64", 1, 8),
    29: BlockType("iq1_m", 256, 56),
    30: BlockType("bf16", 1, 2),
    34: BlockType("tq1_0", 256, 54),
    35: BlockType("tq2_0", 256, 66),
    39: BlockType("mxfp4", 32, 17),
    40: BlockType("nvfp4", 64, 36),
    41: BlockType("q1_0", 128, 18),
}
TYPES = {type.name: type for type in BLOCK_TYPES.values()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it. `shape` is (..., out, in), as in PyTorch: the file has the reverse."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    nbytes: int
    part: int = 0  # which file of a split model

    @property
    def kind(self) -> str:
        """Name of its type: "f32", "f16", "q4_1", "q8_0", "q4_k", ..."""
        return self.type.name

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return self.width // self.type.values * self.type.nbytes
