"""Chunked cross-entropy over a large vocabulary, without storing all logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..data import IGNORED
from ..models import kernels
from ..plan.training import CHUNK

_TOKENS_AT_A_TIME = 8192  # of a product that is as large as the head


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Σ −ln p(target) in nats over the targets that are not `IGNORED`; divide by their number at the end.

    `hidden` (..., width), `weight` (vocabulary, width), `targets` (...) → a float32 scalar. The gradients are computed
    with the loss, chunk by chunk, so that each chunk's logits are computed once and dropped. `dtype` (bfloat16) is that
    of the products; softmax and sums are float32.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    by = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    loss: Tensor = _ChunkedLoss.apply(flat, weight, targets.reshape(-1), dtype, by)  # type: ignore[no-untyped-call]
    return loss


def summed_loss_of_logits(logits: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    """`summed_loss` from full logits, for soft caps and biases."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


@torch.no_grad()
def single_losses(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """−ln p of each target (flat, float32), 0 where it is `IGNORED`: the terms of `summed_loss`, without gradients."""
    flat, matrix = hidden.reshape(-1, hidden.shape[-1]), weight if dtype is None else weight.to(dtype)
    losses = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows, wanted in zip(torch.split(flat, CHUNK), torch.split(targets.reshape(-1), CHUNK), strict=True):
            losses.append(_softmax_minus_one_hot(rows.to(matrix.dtype) @ matrix.t(), wanted, False)[0])
    return torch.cat(losses)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None, by: tuple[bool, bool]
    ) -> Tensor:
        """`by`: whether to compute gradients by `hidden` and by `weight`; a frozen weight's would be as large as it."""
        with torch.autocast(hidden.device.type, enabled=False):
            left, matrix = (hidden, weight) if dtype is None else (hidden.to(dtype), weight.to(dtype))
            if left.dtype != matrix.dtype:
                left = left.to(matrix.dtype)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            to_hidden = torch.empty_like(left) if by[0] else None
            make = torch.empty_like if len(left) else torch.zeros_like
            to_weight = make(weight, dtype=torch.float32) if by[1] else None  # sums of many chunks stay exact
            for start in range(0, left.shape[0], CHUNK):
                rows = slice(start, start + CHUNK)
                logits = left[rows] @ matrix.t()  # (chunk, vocabulary)
                losses, gradient = _softmax_minus_one_hot(logits, targets[rows], any(by))
                loss += losses.sum()
                if to_hidden is not None and gradient is not None:
                    torch.mm(gradient, matrix, out=to_hidden[rows])
                if to_weight is not None and gradient is not None:
                    _add_products(to_weight, gradient, left[rows], first=start == 0)
                del logits, gradient  # or they would take memory beside the next chunk's
        gradients_of = ((to_hidden, hidden), (to_weight, weight))
        ctx.save_for_backward(*(None if tensor is None else tensor.to(of.dtype) for tensor, of in gradients_of))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        scaled = (None if tensor is None else tensor.mul_(gradients[0]) for tensor in (to_hidden, to_weight))
        return *scaled, None, None, None  # in place, for the weight's is large; a second pass is refused by torch


def _add_products(total: Tensor, gradient: Tensor, hidden: Tensor, first: bool) -> None:
    """total (vocabulary, width) += gradient.T @ hidden, or = for the first chunk; some tokens at a time."""
    for start in range(0, len(total), _TOKENS_AT_A_TIME):
        tokens = slice(start, start + _TOKENS_AT_A_TIME)
        part, left = total[tokens], gradient[:, tokens].t()
        if hidden.dtype == total.dtype:
            torch.addmm(part, left, hidden, beta=int(not first), out=part)
        elif first:
            part.copy_(left @ hidden)
        else:
            part.add_(left @ hidden)


def _softmax_minus_one_hot(logits: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The losses of a chunk and their gradient by the logits, in place if possible."""
    if logits.is_cpu and type(logits) is Tensor and logits.dtype in kernels.BOTH and native.available():
        return kernels.cross_entropy(logits, targets, IGNORED, wanted), logits if wanted else None
    values = logits.float()
    loss = _by_torch(values, targets, wanted)
    return loss, values.to(logits.dtype) if wanted else None


def _by_torch(values: Tensor, targets: Tensor, wanted: bool) -> Tensor:
    """The losses; with `wanted`, `values` are overwritten by their gradient."""
    kept = targets != IGNORED
    safe = targets.clamp_min(0)
    own = values.gather(1, safe[:, None])[:, 0]
    normaliser = torch.logsumexp(values, 1)
    if wanted:
        values.sub_(normaliser[:, None]).exp_()
        values.scatter_add_(1, safe[:, None], values.new_full((len(safe), 1), -1.0))
        values.mul_(kept[:, None])
    return torch.where(kept, normaliser - own, 0.0)
