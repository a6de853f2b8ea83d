"""Loss on held-out text, in nats a token and bits a byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..base import UsageError
from ..data import Batch, TokenStream
from .distributed import Process, total
from .module import Training, place


@dataclass(frozen=True)
class HeldOutLoss:
    """Over `tokens` targets, each seen with at least one and at most a whole context of text before it."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int


def bits_per_byte(nats_per_token: float, stream: TokenStream) -> float:
    """nats a token → bits a byte of the text, by the stream's tokens a byte."""
    return nats_per_token * stream.tokens / max(1, stream.bytes) / math.log(2)


@torch.no_grad()
def evaluate(
    training: Any, stream: TokenStream, context: int, rows: int, most_tokens: int, device: torch.device,
    process: Process = Process(),  # noqa: B008 - frozen
) -> HeldOutLoss:  # fmt: skip
    """Mean loss over windows of `context` tokens spread evenly over `stream`, at most `most_tokens` in all."""
    if stream.tokens < 2:
        raise UsageError("the held-out text has no two tokens; give more text, or a larger share to hold out")
    context = min(context, stream.tokens - 1)
    all_windows = (stream.tokens - 1) // context
    count = min(all_windows, max(1, most_tokens // context))
    places = np.arange(count) * all_windows // count * context
    inner: Training = training
    was_training = inner.training
    inner.eval()
    nats = counted = 0.0
    starts = list(range(0, count, rows))
    for turn in range(-(-len(starts) // process.world)):  # as many turns for every process: they wait for each other
        number = turn * process.world + process.rank
        start = starts[min(number, len(starts) - 1)]
        batch = _windows(stream, context, places[start : start + rows])
        loss = float(inner(place(batch, device)))
        if number < len(starts):
            nats, counted = nats + loss, counted + batch.targets.size
    inner.train(was_training)
    nats, counted = total([nats, counted], process, device)
    mean = nats / counted
    return HeldOutLoss(mean, bits_per_byte(mean, stream), int(counted))


def _windows(stream: TokenStream, context: int, starts: NDArray[np.int64]) -> Batch:
    tokens = np.stack([stream.read(int(start), context + 1) for start in starts])
    return Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]), None)
