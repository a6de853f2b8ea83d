"""Matrix products of torch tensors, for the compiled torch layers: to be deleted with them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .matmul import Matrix, Segment

QuantType = Literal["q4_0", "q4_1", "q8_0"]
BLOCK = 32


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


def _multiply(matrix: Matrix, x: Tensor) -> Tensor:
    x = rows_of(x, matrix.width)
    y = matrix.multiply(x.detach().reshape(-1, matrix.width).numpy())
    return torch.from_numpy(y).view(*x.shape[:-1], matrix.rows)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)`: x (..., width), weight (rows, width) → (..., rows)."""
    check_weight(weight, *weight.shape)
    return _multiply(Matrix.from_float32(weight.detach().numpy()), x)


class PackedMatrix:
    """A (rows, width) matrix in blocks of 32 as in the file."""

    def __init__(self, kind: QuantType, rows: int, width: int, data: Tensor, precise: bool = False) -> None:
        self.kind, self.rows, self.width, self.data, self.precise = kind, rows, width, data, precise

    @property
    def matrix(self) -> Matrix:
        return Matrix(self.width, [Segment(self.kind, self.data.numpy())])

    @classmethod
    def pack(cls, kind: QuantType, blocks: np.ndarray, width: int, precise: bool = False) -> PackedMatrix:
        """From GGUF blocks, uint8 (rows, bytes per row). Raises ValueError if they are not rows of `width`."""
        segment = Segment(kind, np.ascontiguousarray(blocks))
        Matrix(width, [segment])
        return cls(kind, segment.rows, width, torch.from_numpy(segment.data.copy()))

    @classmethod
    def pack_float(cls, weight: Tensor, precise: bool = False) -> PackedMatrix:
        """Round a float matrix (rows, width) to q8_0: a float16 scale and 32 bytes per block."""
        rows, width = weight.shape
        if width % BLOCK:
            raise ValueError(f"width {width} is not a multiple of {BLOCK}")
        blocks = weight.detach().float().reshape(rows, -1, BLOCK)
        scales = (blocks.abs().amax(-1, keepdim=True) / 127).half()
        inverse = torch.where(scales > 0, 1 / scales.float(), 0)
        bytes_ = (blocks * inverse).round().clamp(-127, 127).to(torch.int8)
        stored = torch.cat((scales.view(torch.uint8), bytes_.view(torch.uint8)), -1)
        return cls.pack("q8_0", stored.reshape(rows, -1).numpy(), width)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes

    def __repr__(self) -> str:
        return f"PackedMatrix({self.kind}, {self.rows} x {self.width})"

    def matmul(self, x: Tensor) -> Tensor:
        """x W^T: float32 (..., width) → (..., rows)."""
        return _multiply(self.matrix, x)

    def dequantize(self, first: int = 0, end: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows `first` to `end` as float32 (rows, width), into `out` if given (which may have more rows)."""
        end = self.rows if end is None else end
        if not 0 <= first <= end <= self.rows:
            raise ValueError(f"rows {first} to {end} of {self.rows}")
        rows = self.rows_at(torch.arange(first, end))
        if out is None:
            return rows
        check_weight(out[: end - first], end - first, self.width)
        return out[: end - first].copy_(rows)

    def rows_at(self, ids: Tensor) -> Tensor:
        """The rows `ids` (...) as float32 (..., width). Raises IndexError for an id outside the matrix."""
        rows = torch.from_numpy(self.matrix.embed(ids.reshape(-1).to(torch.int64).numpy()))
        return rows.view(*ids.shape, self.width)
