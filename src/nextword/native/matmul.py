"""Matrix products in float32 and with GGUF's quantized blocks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .bindings import library

QuantType = Literal["q4_0", "q4_1", "q8_0"]
BLOCK = 32  # columns that share a scale
PRECISE = False  # default: one int8 term per activation, not two
_FLOAT32 = 0  # matrix.h's code of a plain matrix
_CODES = {"q4_0": 1, "q4_1": 2, "q8_0": 3}  # and of packed ones
_BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}  # in a GGUF file


def rows_of(x: Tensor, width: int) -> Tensor:
    """`x`, made contiguous. Raises ValueError unless it is float32 (..., width) on the CPU."""
    if x.dtype != torch.float32 or not x.is_cpu or x.shape[-1] != width:
        raise ValueError(f"takes float32 (..., {width}) on the CPU, not {x.dtype} {tuple(x.shape)} on {x.device}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("the compiled kernels compute no gradients; use torch.no_grad() or inference_mode()")
    return x.contiguous()


def check_weight(weight: Tensor, *shape: int) -> None:
    """Raise ValueError unless `weight` is contiguous float32 of this shape on the CPU."""
    if weight.dtype != torch.float32 or not weight.is_cpu or not weight.is_contiguous() or weight.shape != shape:
        raise ValueError(
            f"takes a contiguous float32 weight {shape} on the CPU, not {weight.dtype} {tuple(weight.shape)}"
        )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)`: x (..., width), weight (rows, width) → (..., rows).

    A vector's results are bit-identical for any number of vectors. With few vectors it runs at memory bandwidth.
    """
    rows, width = weight.shape
    check_weight(weight, rows, width)
    x = rows_of(x, width)
    y = x.new_empty((*x.shape[:-1], rows))
    batch = x.numel() // width
    library().nw_multiply(_FLOAT32, 0, weight.data_ptr(), rows, width, x.data_ptr(), batch, y.data_ptr())
    return y


class PackedMatrix:
    """A (rows, width) matrix in blocks of 32: w = scale * q (+ minimum), bit for bit as in the file.

    A product rounds the activations in blocks of 32, to int8 or, if `precise`, to two int8 terms with 15 bits in total,
    and sums integers exactly, so that a row's result is the same in any batch. benchmarks/quality.py measures the cost
    in loss.
    """

    def __init__(self, kind: QuantType, rows: int, width: int, data: Tensor, precise: bool = PRECISE) -> None:
        self.kind, self.rows, self.width, self.data, self.precise = kind, rows, width, data, precise
        self.code = _CODES[kind]

    @classmethod
    def pack(cls, kind: QuantType, blocks: np.ndarray, width: int, precise: bool = PRECISE) -> PackedMatrix:
        """From GGUF blocks, uint8 (rows, bytes per row). Raises ValueError if they are not rows of `width`."""
        if width % BLOCK or blocks.dtype != np.uint8 or blocks.ndim != 2:
            raise ValueError(
                f"{kind} takes uint8 rows of whole blocks of {BLOCK}, not {blocks.dtype} for width {width}"
            )
        rows = blocks.shape[0]
        if blocks.shape[1] != width // BLOCK * _BLOCK_BYTES[kind]:
            raise ValueError(
                f"a {kind} row of width {width} has {width // BLOCK * _BLOCK_BYTES[kind]} bytes, not {blocks.shape[1]}"
            )
        blocks = np.ascontiguousarray(blocks)
        kernels, code = library(), _CODES[kind]
        data = torch.empty(kernels.nw_packed_bytes(code, rows, width), dtype=torch.uint8, device="cpu")
        kernels.nw_pack(code, blocks.ctypes.data, rows, width, data.data_ptr())
        return cls(kind, rows, width, data, precise)

    @classmethod
    def pack_float(cls, weight: Tensor, precise: bool = PRECISE) -> PackedMatrix:
        """Round a float matrix (rows, width) to q8_0: a float16 scale and 32 bytes per block."""
        rows, width = weight.shape
        if width % BLOCK:
            raise ValueError(f"width {width} is not a multiple of {BLOCK}")
        blocks = weight.detach().float().reshape(rows, -1, BLOCK)
        scales = (blocks.abs().amax(-1, keepdim=True) / 127).half()
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)
        bytes_ = (blocks * inverse).round().clamp(-127, 127).to(torch.int8)
        stored = torch.cat((scales.view(torch.uint8), bytes_.view(torch.uint8)), -1)
        return cls.pack("q8_0", stored.reshape(rows, -1).numpy(), width, precise)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes

    def __repr__(self) -> str:
        return f"PackedMatrix({self.kind}, {self.rows} x {self.width})"

    def matmul(self, x: Tensor) -> Tensor:
        """x W^T: float32 (..., width) → (..., rows)."""
        x = rows_of(x, self.width)
        batch = x.numel() // self.width
        y = x.new_empty((*x.shape[:-1], self.rows))
        if library().nw_multiply(
            self.code, self.precise, self.data.data_ptr(), self.rows, self.width, x.data_ptr(), batch, y.data_ptr()
        ):
            raise MemoryError(f"not enough memory to multiply {batch} vectors of {self.width}")
        return y

    def dequantize(self, first: int = 0, end: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows `first` to `end` as float32 (rows, width), into `out` if given (which may have more rows)."""
        end = self.rows if end is None else end
        if not 0 <= first <= end <= self.rows:
            raise ValueError(f"rows {first} to {end} of {self.rows}")
        count = end - first
        rows = torch.empty((count, self.width), dtype=torch.float32, device="cpu") if out is None else out[:count]
        check_weight(rows, count, self.width)
        library().nw_unpack(self.code, self.data.data_ptr(), first, count, self.width, None, rows.data_ptr())
        return rows

    def rows_at(self, ids: Tensor) -> Tensor:
        """The rows `ids` (...) as float32 (..., width). Raises IndexError for an id outside the matrix."""
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.rows:
            raise IndexError(f"a row id is outside 0 to {self.rows - 1}")
        out = torch.empty((flat.numel(), self.width), dtype=torch.float32, device="cpu")
        library().nw_unpack(
            self.code, self.data.data_ptr(), 0, flat.numel(), self.width, flat.data_ptr(), out.data_ptr()
        )
        return out.view(*ids.shape, self.width)
