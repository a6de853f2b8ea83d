"""Fused autograd functions for parts of a layer, with less memory traffic than PyTorch's.

They run on the compiled kernels, in contiguous memory on a CPU; `prepare` only uses them there. Weights and the
residual stream are float32; matrix products, their inputs and outputs are of autocast's type, float32 or bfloat16.
Values that are cheap to recompute (a norm's output, the gated product) are not saved for the backward pass. Second
derivatives are not supported, as in PyTorch's CPU attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..plan.training import BLOCK
from . import kernels

Gradients = tuple[Tensor | None, ...]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`F.rms_norm(x, weight.shape, weight, eps)`, saving x and one number per row."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def normed_linear(x: Tensor, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`F.linear(rms_norm(x, gain, eps), weight, bias)` and x itself, saving x and one number per row.

    The residual stream continues from the returned x, so that its gradient is added in the same pass.
    """
    z, same = _NormedLinear.apply(x, gain, eps, weight, bias)  # type: ignore[no-untyped-call]
    return z, same


def gated_linear(gates: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(F.silu(gate) * up, weight)`, gates = (gate, up) side by side; only `gates` is saved."""
    y: Tensor = _GatedLinear.apply(gates, weight)  # type: ignore[no-untyped-call]
    return y


def gated_mlp(x: Tensor, gain: Tensor, eps: float, up: Tensor, down: Tensor) -> Tensor:
    """`x + gated_linear(F.linear(rms_norm(x, gain, eps), up), down)`; saves x, one number per row and `up`'s output.

    Computed in blocks of rows, forward and backward, so that a block stays in the cache.
    """
    y: Tensor = _GatedMLP.apply(x, gain, eps, up, down)  # type: ignore[no-untyped-call]
    return y


def linear_added(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """`residual + F.linear(x, weight)`, in float32 with the addition fused into the matrix product."""
    if _product_dtype() != residual.dtype:
        return residual + F.linear(x, weight)
    return torch.addmm(residual.flatten(0, -2), x.flatten(0, -2), weight.t()).view(residual.shape)


def split_rope(qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of qkv (batch, time, heads + 2 kv, head_width), the first two rotated as by `rotate`.

    They are rotated IN PLACE: nothing else may read `qkv`. Each is (batch, time, its heads, head_width).
    """
    queries, keys, values = _SplitRope.apply(qkv, heads, kv_heads, cosine, sine)  # type: ignore[no-untyped-call]
    return queries, keys, values


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_keys: Tensor | None = None
) -> Tensor:
    """Causal attention (batch, time, heads, head_width) of queries, keys and values of that layout.

    With `first_keys`, see `kernels.causal_attention`. Saves its inputs, its output and one number per query. The output
    is of autocast's type, as torch's.
    """
    y: Tensor = _CausalAttention.apply(queries, keys, values, scale, first_keys)  # type: ignore[no-untyped-call]
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = kernels.rms_norm_forward(_rows(x), weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        x, weight, inverse = ctx.saved_tensors
        dy = _rows(gradients[0]).clone(memory_format=torch.contiguous_format)  # the kernel overwrites it
        dx, dweight = kernels.rms_norm_backward(_rows(x), weight, inverse, None, dy)
        return dx.view(x.shape), dweight, None


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, inverse = kernels.rms_norm_forward(_rows(x), gain, eps, _product_dtype())
        ctx.save_for_backward(x, gain, weight, bias, inverse)
        ctx.set_materialize_grads(False)
        z = F.linear(y, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))
        return z.view(*x.shape[:-1], len(weight)), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Gradients:
        x, gain, weight, bias, inverse = ctx.saved_tensors
        dz, residual_grad = gradients
        if dz is None:
            return residual_grad, None, None, None, None
        dz = _rows(dz)
        dy = dz @ weight.to(dz.dtype)
        dx, dgain = kernels.rms_norm_backward(
            _rows(x), gain, inverse, None if residual_grad is None else _rows(residual_grad), dy
        )
        dweight = (dz.t() @ dy).to(weight.dtype)  # dy holds y now
        return dx.view(x.shape), dgain, None, dweight, None if bias is None else dz.sum(0).to(bias.dtype)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gates, weight)
        h = kernels.swiglu_forward(_rows(gates))
        return (h @ weight.to(h.dtype).t()).view(*gates.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        gates, weight = ctx.saved_tensors
        dy = _rows(gradients[0])
        dh = dy @ weight.to(dy.dtype)
        dgates = kernels.swiglu_backward(_rows(gates), dh)
        return dgates.view(gates.shape), (dy.t() @ dh).to(weight.dtype)  # dh holds h now


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, up: Tensor, down: Tensor) -> Tensor:
        rows, dtype = _rows(x), _product_dtype()
        gates = rows.new_empty(len(rows), len(up), dtype=dtype)
        inverse, y = rows.new_empty(len(rows)), torch.empty_like(rows)
        to_gates, to_y = up.to(dtype).t(), down.to(dtype).t()
        for block in _blocks(rows, dtype):
            normed, inverse[block] = kernels.rms_norm_forward(rows[block], gain, eps, dtype)
            torch.mm(normed, to_gates, out=gates[block])
            _add_product(rows[block], kernels.swiglu_forward(gates[block]), to_y, out=y[block])
        ctx.save_for_backward(x, gain, up, down, gates, inverse)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        x, gain, up, down, gates, inverse = ctx.saved_tensors
        rows, residual_grad = _rows(x), _rows(gradients[0])
        dx, dgain, dup, ddown = torch.empty_like(rows), torch.zeros_like(gain), None, None
        up, down = up.to(gates.dtype), down.to(gates.dtype)
        for block in _blocks(rows, gates.dtype):
            dy = residual_grad[block].to(gates.dtype)
            buffer = dy @ down  # the gradient of the gated product, and then that product
            dgates = kernels.swiglu_backward(gates[block], buffer)
            ddown = _add_product(ddown, dy.t(), buffer)
            buffer = dgates @ up  # the gradient of the normed input, and then that
            normed = rows[block], gain, inverse[block]
            dgain += kernels.rms_norm_backward(*normed, residual_grad[block], buffer, dx[block])[1]
            dup = _add_product(dup, dgates.t(), buffer)
        return dx.view(x.shape), dgain, None, dup, ddown


class _SplitRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.angles = cosine, sine  # shared by all layers
        kernels.rope(qkv, heads + kv_heads, cosine, sine)
        queries, keys, values = qkv.detach().tensor_split((heads, heads + kv_heads), 2)
        return queries, keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        cosine, sine = ctx.angles
        return kernels.rope_backward(gradients, cosine, sine), None, None, None, None


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_keys: Tensor | None
    ) -> Tensor:
        out = torch.empty(queries.shape, dtype=_product_dtype(queries.dtype))
        log_sums = kernels.causal_attention((queries, keys, values), out, scale, first_keys)
        ctx.save_for_backward(queries, keys, values, out, log_sums)
        ctx.scale, ctx.first_keys = scale, first_keys  # shared by all layers
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        *heads, out, log_sums = ctx.saved_tensors
        out_grad = gradients[0] if gradients[0].stride(3) == 1 else gradients[0].contiguous()
        found = kernels.causal_attention_backward(heads, out, log_sums, out_grad, ctx.scale, ctx.first_keys)
        return *found, None, None


def _product_dtype(otherwise: torch.dtype = torch.float32) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else otherwise


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`total` (float32; None is 0) + a @ b, into `out` or else into `total`."""
    if total is None:
        return (a @ b).float()
    out = total if out is None else out
    if a.dtype == total.dtype:
        return torch.addmm(total, a, b, out=out)  # not addmm_, which FLOP counters miss
    return torch.add(total, a @ b, out=out)


def _blocks(rows: Tensor, dtype: torch.dtype) -> list[slice]:
    size = BLOCK * 4 // dtype.itemsize
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()
