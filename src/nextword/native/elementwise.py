"""What training computes between its matrix products, forward and backward: float32, contiguous, on the CPU.

Each takes tensors that `models.fused` has checked, and shares the work among torch's own threads. No result depends
on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_int64, c_void_p

import torch
from torch import Tensor

from .bindings import library
from .matmul import check_weight, rows_of


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`F.rms_norm(x, weight.shape, weight, eps)`."""
    width = weight.shape[0]
    check_weight(weight, width)
    x = rows_of(x, width)
    y = x.new_empty(x.shape)
    library().nw_rms_norm(x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, y.data_ptr())
    return y


def swiglu(x: Tensor) -> Tensor:
    """`F.silu(gate) * up` for x = (gate, up) side by side: (..., 2 width) → (..., width)."""
    width = x.shape[-1] // 2
    x = rows_of(x, 2 * width)
    y = x.new_empty((*x.shape[:-1], width))
    library().nw_silu_product(x.data_ptr(), x.numel() // (2 * width), width, y.data_ptr())
    return y


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of x (rows, width), and each row's factor 1 / √(mean(x²) + eps), (rows,)."""
    rows, width = _rows(x, weight)
    y, inverse = torch.empty_like(x), x.new_empty(rows)
    library().nw_norm(
        x.data_ptr(), weight.data_ptr(), rows, width, eps, y.data_ptr(), inverse.data_ptr(), torch.get_num_threads()
    )
    return y, inverse


def rms_norm_backward(
    x: Tensor, weight: Tensor, inverse: Tensor, through: Tensor | None, dy: Tensor, dx: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x (into `dx`, if given) and of the weight from `dy`, which becomes the norm's output.

    `through`, if given, is added to the first.
    """
    dx = torch.empty_like(x) if dx is None else dx
    rows, width = _rows(x, weight, dy, dx, *([] if through is None else [through]))
    sums = x.new_empty(library().nw_norm_sums(rows, width), width)
    library().nw_norm_back(
        x.data_ptr(), weight.data_ptr(), inverse.data_ptr(), None if through is None else through.data_ptr(),
        rows, width, dy.data_ptr(), dx.data_ptr(), sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx, sums[0].clone()


def swiglu_forward(gates: Tensor) -> Tensor:
    """silu(gate) up for gates = (gate, up) side by side: (rows, 2 width) → (rows, width)."""
    rows, width = _rows(gates)
    h = gates.new_empty(rows, width // 2)
    library().nw_gate(gates.data_ptr(), rows, width // 2, h.data_ptr(), torch.get_num_threads())
    return h


def swiglu_backward(gates: Tensor, dh: Tensor) -> Tensor:
    """The gradient of `gates` from `dh`, which becomes silu(gate) up."""
    rows, width = _rows(gates)
    if _rows(dh) != (rows, width // 2):
        raise ValueError(f"shapes do not fit: {tuple(gates.shape)} and {tuple(dh.shape)}")
    d = torch.empty_like(gates)
    library().nw_gate_back(gates.data_ptr(), rows, width // 2, dh.data_ptr(), d.data_ptr(), torch.get_num_threads())
    return d


class _Gradient(Structure):
    _fields_ = (
        ("part", c_void_p),
        *((name, c_int64) for name in ("heads", "batch_stride", "time_stride", "head_stride")),
    )


class _Turning(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "heads", "turned", "head_width", "rotary_width")),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("table_stride", c_int64),
    )


def rope(x: Tensor, turned: int, cosine: Tensor, sine: Tensor) -> None:
    """Turn the leading `turned` heads of x (batch, time, heads, head_width) in place, as `rotary.rotate` does.

    `cosine` and `sine` are contiguous (1 or batch, time, 1, rotary_width).
    """
    library().nw_turn(byref(_turning(x, turned, cosine, sine)), x.data_ptr(), torch.get_num_threads())


def rope_backward(parts: Sequence[Tensor], cosine: Tensor, sine: Tensor) -> Tensor:
    """The gradient of `turn`'s x from those of queries, keys and values, each (batch, time, its heads, head_width)."""
    held = [part if part.stride(3) == 1 else part.contiguous() for part in parts]
    queries, keys, values = held
    batch, time, turned, width = queries.shape
    turned += keys.shape[2]
    dx = queries.new_empty(batch, time, turned + values.shape[2], width)
    each = (_Gradient * 3)(*[_Gradient(part.data_ptr(), part.shape[2], *part.stride()[:3]) for part in held])
    library().nw_turn_back(byref(_turning(dx, turned, cosine, sine)), each, dx.data_ptr(), torch.get_num_threads())
    return dx


def cross_entropy(logits: Tensor, targets: Tensor, ignored: int, gradient: bool) -> Tensor:
    """−ln softmax(logits)[target] of each row, 0 where the target is `ignored`: (rows, vocabulary), (rows,) → (rows,).

    With `gradient` the logits' memory holds their gradient afterwards. Raises IndexError for a target out of range.
    """
    rows, width = _rows(logits)
    targets = targets.contiguous()
    kept = targets[targets != ignored]
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < width:
        raise IndexError(f"a target is outside the vocabulary of {width}")
    losses = logits.new_empty(rows)
    library().nw_entropy(
        logits.data_ptr(), targets.data_ptr(), rows, width, ignored, int(gradient), losses.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return losses


def _turning(x: Tensor, turned: int, cosine: Tensor, sine: Tensor) -> _Turning:
    batch, time, heads, width = x.shape
    angles, rotary = cosine.shape[0], cosine.shape[-1]
    fits = cosine.shape == sine.shape == (angles, time, 1, rotary) and angles in (1, batch) and rotary <= width
    if not fits or rotary % 2 or turned > heads:
        raise ValueError(f"takes angles (1 or {batch}, {time}, 1, up to {width}), not {tuple(cosine.shape)}")
    _check(x, cosine, sine)
    stride = 0 if angles == 1 else time * rotary
    return _Turning(batch, time, heads, turned, width, rotary, cosine.data_ptr(), sine.data_ptr(), stride)


def _check(*tensors: Tensor) -> None:
    """Raise ValueError where an address must not be handed on."""
    for tensor in tensors:
        if tensor.dtype != torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            raise ValueError(f"takes contiguous float32 on the CPU, not {tensor.dtype} on {tensor.device}")


def _rows(first: Tensor, *others: Tensor) -> tuple[int, int]:
    """Rows and width of `first`. Raises ValueError unless the others are of its shape, or one row of it."""
    _check(first, *others)
    rows, width = first.shape
    for tensor in others:
        if tensor.shape != first.shape and tensor.shape != (width,):
            raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(tensor.shape)}")
    return rows, width
