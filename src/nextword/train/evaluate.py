"""Held-out loss, in nats per token and bits per byte, with its standard error.

The targets depend only on the data: they are the same for every run on it, whatever its length, context, packing and
masks. They are read with the run's own settings, as in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..base import UsageError
from ..data import IGNORED, TokenStream, Windows
from ..data.splitting import FEW
from ..plan import RunConfig
from .distributed import Process, total
from .loss_module import LossModule, place

MOST = 200_000  # held-out tokens to evaluate
_FINE_TUNED_MOST = 20_000  # 200,000 would take minutes with a large model
_STRETCH = 4096  # tokens per span, if it has more


@dataclass(frozen=True)
class ValLoss:
    """The loss over `tokens` targets, each with at most a full context before it.

    `error` is the standard error of `nats_per_token` over other text of this kind, from `clusters` documents or spans
    of text (`over` says which). None for fewer than two.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    error: float | None = None
    clusters: int = 0
    over: str = "documents"
    sample: bool = False  # whether it covers only a sample of the targets evaluated at a run's end


def final_val_tokens(config: RunConfig) -> int:
    """The most held-out tokens to evaluate at a run's end; a fifth of them at other times."""
    return config.run.evaluate_tokens or (_FINE_TUNED_MOST if config.model.base else MOST)


def bits_per_byte(nats_per_token: float, stream: TokenStream) -> float:
    """nats per token → bits per byte of text, with the stream's tokens per byte."""
    return nats_per_token * stream.tokens / max(1, stream.bytes) / math.log(2)


def standard_error(nats: ArrayLike, counts: ArrayLike) -> float | None:
    """Standard error of Σ nats / Σ counts over independent clusters of any size; None for fewer than two.

    The mean of tokens is a ratio of two sums: the variance is that of the residuals nats − mean · counts, with the
    factor G/(G − 1) of G clusters (Cochran 1977, "Sampling techniques", eq. 6.13; CR1 of Cameron & Miller 2015).
    """
    sums, sizes = np.asarray(nats, np.float64), np.asarray(counts, np.float64)
    groups = int(np.count_nonzero(sizes))
    if groups < 2:
        return None
    residuals = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sqrt(groups / (groups - 1) * (residuals**2).sum()) / sizes.sum())


def val_windows(stream: TokenStream, config: RunConfig, most_tokens: int = MOST, sample: bool = False) -> Windows:
    """The text to evaluate on, in a run's windows: all of it, or evenly spaced spans.

    Those of a `sample` are as long as the context, which makes it more like the whole text.
    """
    train = config.train
    if stream.tokens < 2:
        raise UsageError("the held-out text has fewer than two tokens; give more text, or a larger data.val_fraction")
    if stream.tokens > most_tokens:
        size = min(train.context if sample else _STRETCH, max(2, most_tokens))
        stream = stream.spread(max(1, most_tokens // size), size)
    return Windows(stream, min(train.context, stream.tokens - 1), train.seed, train.packing, train.mask_documents)


def evaluate(
    training: Any, windows: Windows, rows: int, device: torch.device,
    process: Process = Process(), sample: bool = False,  # noqa: B008 - frozen
) -> ValLoss:  # fmt: skip
    """Mean loss over all targets of the windows' stream, `rows` windows at a time."""
    by_document = windows.stream.documents >= FEW  # fewer say little about the variation between documents
    groups = _documents(windows.stream) if by_document else _stretches(windows.stream)
    inner: LossModule = training
    was_training = inner.training
    inner.eval()
    sums = _sums(inner, windows, rows, groups, device, process)
    inner.train(was_training)
    nats, counts = np.array(total(sums.ravel().tolist(), process, device)).reshape(sums.shape)
    mean = float(nats.sum() / counts.sum())
    return ValLoss(
        mean, bits_per_byte(mean, windows.stream), int(counts.sum()), standard_error(nats, counts),
        int(np.count_nonzero(counts)), "documents" if by_document else "stretches of text", sample,
    )  # fmt: skip


def _documents(stream: TokenStream) -> NDArray[np.int64]:
    """The document of each token, numbered from 0."""
    segments = stream.segments
    return np.repeat(np.unique(segments.documents, return_inverse=True)[1], segments.lengths)


def _stretches(stream: TokenStream) -> NDArray[np.int64]:
    """The span of each token: its segment, split if it is more than a fortieth of the text."""
    segments, longest = stream.segments, max(16, stream.tokens // 40)
    parts = -(-segments.lengths // longest)
    within = np.arange(stream.tokens) - np.repeat(segments.starts, segments.lengths)
    return np.repeat(np.cumsum(parts) - parts, segments.lengths) + within // longest


@torch.no_grad()
def _sums(
    training: Any, windows: Windows, rows: int, groups: NDArray[np.int64], device: torch.device, process: Process
) -> NDArray[np.float64]:
    """Nats and targets of each group of tokens: (2, groups), this process's share of them."""
    sums = np.zeros((2, int(groups.max()) + 1))
    starts = list(range(0, windows.rows_in_order, rows))
    for turn in range(-(-len(starts) // process.readers)):  # as many in every process: they synchronize
        number = turn * process.readers + process.reader
        start = starts[min(number, len(starts) - 1)]
        batch, positions = windows.in_order(np.arange(start, min(start + rows, windows.rows_in_order)))
        placed = place(batch, device)
        losses = training(placed, each_target=True).double().cpu().numpy()
        if number < len(starts):
            counted = (batch.targets != IGNORED).ravel()
            group = groups[positions.ravel()[counted]]
            sums[0] += np.bincount(group, losses[counted], sums.shape[1])
            sums[1] += np.bincount(group, minlength=sums.shape[1])
    return sums
