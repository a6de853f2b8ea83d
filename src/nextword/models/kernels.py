"""Training's passes on the compiled kernels: RMSNorm, SwiGLU, rope, attention and cross-entropy; on the CPU.

They take contiguous tensors of float32 or, where it says so, bfloat16, attention also strides, and use torch's threads.
They compute in float32. No result depends on the number of threads, nor on the processor's instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from ..native.bindings import library

BOTH = (torch.float32, torch.bfloat16)


def rms_norm_forward(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """RMSNorm of x (rows, width), as float32 or bfloat16, and each row's factor 1 / √(mean(x²) + eps), (rows,)."""
    rows, width = _rows(x, weight)
    y, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(rows)
    library().nw_rms_norm(
        x.data_ptr(), weight.data_ptr(), rows, width, eps, y.data_ptr(), _is_bfloat16(y), inverse.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, inverse


def rms_norm_backward(
    x: Tensor, weight: Tensor, inverse: Tensor, residual_grad: Tensor | None, dy: Tensor, dx: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of x (into `dx`, if given) and of the weight from `dy`, which becomes the norm's output.

    `dy` is float32 or bfloat16. `residual_grad`, if given, is added to the first.
    """
    dx = torch.empty_like(x) if dx is None else dx
    rows, width = _rows(x, weight, dx, *([] if residual_grad is None else [residual_grad]))
    _check(dy, dtypes=BOTH)
    if dy.shape != x.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(dy.shape)}")
    sums = x.new_empty(library().nw_rms_norm_sums(rows, width), width)
    residual = None if residual_grad is None else residual_grad.data_ptr()
    library().nw_rms_norm_backward(
        x.data_ptr(), weight.data_ptr(), inverse.data_ptr(), residual, rows, width, dy.data_ptr(),
        _is_bfloat16(dy), dx.data_ptr(), sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return dx, sums[0].clone()


def swiglu_forward(gates: Tensor) -> Tensor:
    """silu(gate) up for gates = (gate, up) side by side: (rows, 2 width) → (rows, width), float32 or bfloat16."""
    _check(gates, dtypes=BOTH)
    rows, width = gates.shape
    h = gates.new_empty(rows, width // 2)
    library().nw_swiglu(gates.data_ptr(), _is_bfloat16(gates), rows, width // 2, h.data_ptr(), torch.get_num_threads())
    return h


def swiglu_backward(gates: Tensor, dh: Tensor) -> Tensor:
    """The gradient of `gates` from `dh`, which becomes silu(gate) up; both float32 or both bfloat16."""
    _check(gates, dtypes=BOTH)
    _check(dh, dtypes=(gates.dtype,))
    rows, width = gates.shape
    if dh.shape != (rows, width // 2):
        raise ValueError(f"shapes do not fit: {tuple(gates.shape)} and {tuple(dh.shape)}")
    dx = torch.empty_like(gates)
    library().nw_swiglu_backward(
        gates.data_ptr(), _is_bfloat16(gates), rows, width // 2, dh.data_ptr(), dx.data_ptr(), torch.get_num_threads()
    )
    return dx


class _HeadRows(Structure):
    _fields_ = (
        ("values", c_void_p),
        *((name, c_int64) for name in ("bfloat16", "heads", "batch_stride", "time_stride", "head_stride")),
    )

    @classmethod
    def of(cls, x: Tensor) -> _HeadRows:
        """`x` (batch, time, heads, head_width), whose last dimension is contiguous."""
        return cls(x.data_ptr(), _is_bfloat16(x), x.shape[2], *x.stride()[:3])


class _RopeShape(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "heads", "rope_heads", "head_width", "rope_width")),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("table_stride", c_int64),
    )


def rope(x: Tensor, rope_heads: int, cosine: Tensor, sine: Tensor) -> None:
    """Rotate the leading `rope_heads` heads of x (batch, time, heads, head_width) in place, as `rotary.rotate` does.

    x is float32 or bfloat16; `cosine` and `sine` are contiguous float32 (1 or batch, time, 1, rope_width).
    """
    shape = _rope_shape(x, rope_heads, cosine, sine)
    library().nw_rope(byref(shape), x.data_ptr(), _is_bfloat16(x), torch.get_num_threads())


def rope_backward(gradients: Sequence[Tensor], cosine: Tensor, sine: Tensor) -> Tensor:
    """The gradient of `rope`'s x from those of queries, keys and values, each (batch, time, its heads, head_width).

    All are float32 or all bfloat16.
    """
    rows = [gradient if gradient.stride(3) == 1 else gradient.contiguous() for gradient in gradients]
    _check_rows(*rows)
    if len({gradient.dtype for gradient in rows}) > 1:
        raise ValueError(f"takes gradients of one type, not {[gradient.dtype for gradient in rows]}")
    queries, keys, values = rows
    batch, time, query_heads, width = queries.shape
    rope_heads = query_heads + keys.shape[2]
    dx = queries.new_empty(batch, time, rope_heads + values.shape[2], width)
    parts = (_HeadRows * 3)(*map(_HeadRows.of, rows))
    shape = _rope_shape(dx, rope_heads, cosine, sine)
    library().nw_rope_backward(byref(shape), parts, dx.data_ptr(), torch.get_num_threads())
    return dx


class _CausalAttention(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "time", "width")),
        ("scale", c_float),
        ("first_keys", c_void_p),
        ("first_stride", c_int64),
        *((name, _HeadRows) for name in ("queries", "keys", "values", "out")),
        ("log_sums", c_void_p),
        *((name, _HeadRows) for name in ("out_grad", "query_grad", "key_grad", "value_grad")),
        ("failed", c_int),
    )


def causal_attention(heads: Sequence[Tensor], out: Tensor, scale: float, first_keys: Tensor | None = None) -> Tensor:
    """Attention of `heads`: queries, keys and values, each (batch, time, its heads, head_width), into `out`.

    A query sees the keys from its first one, or 0, to its own position. `first_keys`, float32 (1 or batch, time), may
    not decrease. float32 or bfloat16; a head_width that is a multiple of 8. Returns each query's ln of the sum of
    exp(score), (batch, heads, time), for the backward pass.
    """
    batch, time, query_heads, _ = heads[0].shape
    log_sums = torch.empty(batch, query_heads, time)
    shape = _attention(heads, out, log_sums, scale, first_keys)
    if not library().nw_causal_attention(byref(shape), torch.get_num_threads()):
        raise MemoryError("not enough memory for attention")
    return log_sums


def causal_attention_backward(
    heads: Sequence[Tensor], out: Tensor, log_sums: Tensor, out_grad: Tensor, scale: float,
    first_keys: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of queries, keys and values from that of `out`."""
    shape = _attention(heads, out, log_sums, scale, first_keys)
    gradients = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in heads]
    _check_rows(out_grad)
    shape.out_grad = _HeadRows.of(out_grad)
    shape.query_grad, shape.key_grad, shape.value_grad = map(_HeadRows.of, gradients)
    if not library().nw_causal_attention_backward(byref(shape), torch.get_num_threads()):
        raise MemoryError("not enough memory for attention")
    return tuple(gradients)


def _attention(
    heads: Sequence[Tensor], out: Tensor, log_sums: Tensor, scale: float, first_keys: Tensor | None
) -> _CausalAttention:
    queries, keys, values = heads
    batch, time, query_heads, width = queries.shape
    if keys.shape != values.shape or out.shape != queries.shape or keys.shape != (batch, time, keys.shape[2], width):
        raise ValueError(f"shapes do not fit: {[tuple(part.shape) for part in (*heads, out)]}")
    if width % 8 or query_heads % keys.shape[2]:
        raise ValueError(f"takes heads of a multiple of 8 numbers, in whole groups, not {query_heads} of {width}")
    _check_rows(*heads, out)
    _check(log_sums, *([] if first_keys is None else [first_keys]))
    if first_keys is not None and first_keys.shape not in ((1, time), (batch, time)):
        raise ValueError(f"takes first keys (1 or {batch}, {time}), not {tuple(first_keys.shape)}")
    shape = _CausalAttention(batch, time, width, scale, log_sums=log_sums.data_ptr())
    shape.queries, shape.keys, shape.values, shape.out = map(_HeadRows.of, (*heads, out))
    if first_keys is not None:
        shape.first_keys, shape.first_stride = first_keys.data_ptr(), time if len(first_keys) > 1 else 0
    return shape


def cross_entropy(logits: Tensor, targets: Tensor, ignored: int, gradient: bool) -> Tensor:
    """−ln softmax(logits)[target] of each row, 0 where the target is `ignored`: (rows, vocabulary), (rows,) → (rows,).

    The logits are float32 or bfloat16; with `gradient` their memory holds their gradient afterwards. The losses are
    float32. Raises IndexError for a target out of range.
    """
    _check(logits, dtypes=BOTH)
    rows, width = logits.shape
    targets = targets.contiguous()
    kept = targets[targets != ignored]
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < width:
        raise IndexError(f"a target is outside the vocabulary of {width}")
    losses = torch.empty(rows)
    done = library().nw_cross_entropy(
        logits.data_ptr(), _is_bfloat16(logits), targets.data_ptr(), rows, width, ignored, int(gradient),
        losses.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if not done:
        raise MemoryError("not enough memory for a row of logits")
    return losses


def _rope_shape(x: Tensor, rope_heads: int, cosine: Tensor, sine: Tensor) -> _RopeShape:
    batch, time, heads, width = x.shape
    angles, rope_width = cosine.shape[0], cosine.shape[-1]
    fits = cosine.shape == sine.shape == (angles, time, 1, rope_width) and angles in (1, batch) and rope_width <= width
    if not fits or rope_width % 2 or rope_heads > heads:
        raise ValueError(f"takes angles (1 or {batch}, {time}, 1, up to {width}), not {tuple(cosine.shape)}")
    _check(x, dtypes=BOTH)
    _check(cosine, sine)
    stride = 0 if angles == 1 else time * rope_width
    return _RopeShape(batch, time, heads, rope_heads, width, rope_width, cosine.data_ptr(), sine.data_ptr(), stride)


def _check_rows(*tensors: Tensor) -> None:
    """Raise ValueError unless `_HeadRows.of` may be passed to a kernel."""
    for x in tensors:
        if x.dtype not in BOTH or not x.is_cpu or x.stride(3) != 1:
            raise ValueError(f"takes contiguous rows of float32 or bfloat16 on the CPU, not {x.dtype} on {x.device}")


def _check(*tensors: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> None:
    """Raise ValueError unless the tensor's address may be passed to a kernel."""
    for tensor in tensors:
        if tensor.dtype not in dtypes or not tensor.is_cpu or not tensor.is_contiguous():
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"takes contiguous {names} on the CPU, not {tensor.dtype} on {tensor.device}")


def _is_bfloat16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _rows(first: Tensor, *others: Tensor) -> tuple[int, int]:
    """Rows and width of `first`. Raises ValueError unless the others are of its shape, or one row of it."""
    _check(first, *others)
    rows, width = first.shape
    for tensor in others:
        if tensor.shape != first.shape and tensor.shape != (width,):
            raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(tensor.shape)}")
    return rows, width
