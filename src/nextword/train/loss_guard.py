"""Detects NaN losses and loss spikes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 100  # recent losses to compare with
_FEWEST = 20  # fewer known losses: no spike detection
_DEVIATIONS = 10.0
_GUESSES = 2.0  # times a uniform guess's loss, ln V: beyond it the model has diverged
_LEAP = 2.0  # nats above the mean, at least: a small batch of hard text is not a spike


@dataclass
class LossGuard:
    """Checks each step's loss and gradient norm."""

    vocabulary: int
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def check(self, loss: float, gradient_norm: float) -> str | None:
        """The problem with a step, or None; a good loss is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if loss > (most := _GUESSES * math.log(self.vocabulary)):
            return f"the loss is {loss:,.3f}, above {most:.3f} = 2 ln {self.vocabulary:,}: training has diverged"
        if len(self.losses) >= _FEWEST:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + max(_DEVIATIONS * deviation, _LEAP):
                return f"loss spike: {loss:.3f} after about {mean:.3f}"
        self.losses.append(loss)
        return None
