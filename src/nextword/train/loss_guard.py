"""Losses that are not numbers, and losses that leap: noticed, acted upon, and said."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["stop", "skip", "rewind"]
ACTIONS: tuple[Action, ...] = ("stop", "skip", "rewind")

_REMEMBERED = 100  # losses that a new one is compared with
_LEAST = 20  # before so many are known nothing is a leap
_DEVIATIONS = 10.0
_GUESSES = 2.0  # times the loss of a guess, ln V: a model that is so sure of so much that is wrong has diverged
_LEAP = 2.0  # nats above the mean, at least: a small batch of hard text is no trouble


@dataclass
class Guard:
    """Judges each step's loss and gradient norm. `vocabulary`: tokens that a guess chooses among."""

    vocabulary: int
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def trouble(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step, or None; a sound loss is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if loss > (most := _GUESSES * math.log(self.vocabulary)):
            return f"the loss is {loss:,.3f}, and above {most:.3f} = 2 ln {self.vocabulary:,} no training is sound"
        if len(self.losses) >= _LEAST:
            mean, spread = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + max(_DEVIATIONS * spread, _LEAP):
                return f"the loss leapt to {loss:.3f} from about {mean:.3f}"
        self.losses.append(loss)
        return None
