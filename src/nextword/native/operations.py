"""Float operations of one decoding step, on torch tensors (CPU, float32, no gradients).

The wrappers check what a wrong shape could break; every one has a plain torch equivalent in its docstring.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from .library import loaded


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` for a few vectors: x (..., width), weight (rows, width) → (..., rows).

    Reads the weights once for all vectors at the memory's speed; torch's own product reaches a third of it.
    """
    rows, width = weight.shape
    if x.shape[-1] != width or x.dtype != torch.float32 or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(f"takes float32 (..., {width}) and a contiguous float32 matrix")
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    loaded().nw_linear(weight.data_ptr(), rows, width, x.data_ptr(), x.numel() // width, y.data_ptr())
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`F.rms_norm(x, weight.shape, weight, eps)`."""
    width = weight.shape[0]
    if x.shape[-1] != width or x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ValueError(f"takes float32 (..., {width})")
    x = x.contiguous()
    y = torch.empty_like(x)
    loaded().nw_rms_norm(x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, y.data_ptr())
    return y


def silu_product(x: Tensor) -> Tensor:
    """`F.silu(gate) * up` for x = (gate, up) side by side: (..., 2 width) → (..., width)."""
    if x.dtype != torch.float32 or x.shape[-1] % 2:
        raise ValueError("takes float32 of even width")
    x = x.contiguous()
    width = x.shape[-1] // 2
    y = torch.empty((*x.shape[:-1], width))
    loaded().nw_silu_product(x.data_ptr(), x.numel() // (2 * width), width, y.data_ptr())
    return y


def attend(
    qkv: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    keys: Tensor,
    values: Tensor,
    lengths: Sequence[int],
    heads: int,
    scale: float,
    window: int,
) -> Tensor:
    """Attention of one new token in each row, over those stored and itself: → (batch, heads * head_width).

    `qkv` (batch, heads + 2 kv_heads, head_width) is turned in place by `rope` = (cos, signed sin), each (batch or 1,
    rotary_width); key and value are stored in `keys` and `values` (batch, kv_heads, capacity, head_width) behind
    the row's length; the last `window` positions are looked at (0: all).
    """
    batch, kv, capacity, width = keys.shape
    if (
        qkv.shape != (batch, heads + 2 * kv, width)
        or values.shape != keys.shape
        or len(lengths) != batch
        or not 0 <= min(lengths) <= max(lengths) < capacity
        or heads % kv
        or not (qkv.is_contiguous() and keys.is_contiguous() and values.is_contiguous())
        or not (qkv.dtype == keys.dtype == values.dtype == torch.float32)
    ):
        raise ValueError(f"shapes do not fit: qkv {tuple(qkv.shape)}, keys {tuple(keys.shape)}, lengths {lengths}")
    y = torch.empty((batch, heads * width))
    cosine, sine, stride, rotary = 0, 0, 0, 0
    if rope is not None:
        table_rows, rotary = rope[0].shape
        if rope[1].shape != rope[0].shape or table_rows not in (1, batch) or rotary > width or rotary % 2:
            raise ValueError(f"rope tables {tuple(rope[0].shape)} do not fit {batch} rows of width {width}")
        held = rope[0].contiguous(), rope[1].contiguous()
        cosine, sine = held[0].data_ptr(), held[1].data_ptr()
        stride = rotary if table_rows == batch else 0
    numbers = array("q", lengths)
    short = loaded().nw_attend(
        qkv.data_ptr(),
        cosine,
        sine,
        stride,
        rotary,
        keys.data_ptr(),
        values.data_ptr(),
        numbers.buffer_info()[0],
        batch,
        heads,
        kv,
        width,
        capacity,
        window,
        scale,
        y.data_ptr(),
    )
    if short:
        raise MemoryError("no memory for the attention scores")
    return y
