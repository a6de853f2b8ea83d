"""Float operations on torch tensors (CPU, float32, no gradients), each with its plain torch equivalent named.

The wrappers check what a wrong shape could break, before any address is handed on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import loaded

_FLOAT32 = 0  # what matrix.h calls a plain matrix


def rows_of(x: Tensor, width: int) -> Tensor:
    """`x` with its numbers one after the other. Raises ValueError unless it is float32 (..., width) on the CPU."""
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

    A vector's results are the same bits whatever the number of vectors. Few vectors pass at the memory's speed.
    """
    rows, width = weight.shape
    check_weight(weight, rows, width)
    x = rows_of(x, width)
    y = x.new_empty((*x.shape[:-1], rows))
    batch = x.numel() // width
    loaded().nw_multiply(_FLOAT32, 0, weight.data_ptr(), rows, width, x.data_ptr(), batch, y.data_ptr())
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`F.rms_norm(x, weight.shape, weight, eps)`."""
    width = weight.shape[0]
    check_weight(weight, width)
    x = rows_of(x, width)
    y = x.new_empty(x.shape)
    loaded().nw_rms_norm(x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, y.data_ptr())
    return y


def silu_product(x: Tensor) -> Tensor:
    """`F.silu(gate) * up` for x = (gate, up) side by side: (..., 2 width) → (..., width)."""
    width = x.shape[-1] // 2
    x = rows_of(x, 2 * width)
    y = x.new_empty((*x.shape[:-1], width))
    loaded().nw_silu_product(x.data_ptr(), x.numel() // (2 * width), width, y.data_ptr())
    return y
