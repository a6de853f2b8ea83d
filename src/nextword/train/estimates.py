"""Means over seeds and held-out text, with standard errors over both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.distributions import student_quantile

LEVEL = 0.05  # two-sided: 95% intervals
_POWER = 0.8
_STRETCHES = 32  # spans of text; long ones, since neighbouring windows are correlated

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error with its degrees of freedom, and half the width of its interval."""

    mean: float
    error: float
    freedom: float
    margin: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.margin

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.margin

    def detectable(self, level: float = LEVEL) -> float:
        """The minimum detectable effect: significant at `level` with 80% power."""
        return (student_quantile(1 - level / 2, self.freedom) + student_quantile(_POWER, self.freedom)) * self.error


def crossed(values: Values | Sequence[Sequence[float]], level: float = LEVEL) -> Estimate:
    """The mean of `values` (seeds, spans of text or examples), as a sample of all seeds and all text.

    Two-way random effects: Var = (MS_seeds + MS_text - MS_both) / (S T), never below either alone (Cornfield and Tukey
    1956); degrees of freedom by Satterthwaite 1946. A single seed's error only covers the text.
    """
    cells = np.atleast_2d(np.asarray(values, np.float64))
    seeds, texts = cells.shape
    mean = float(cells.mean())
    if seeds == 1:
        error = float(cells.std(ddof=1) / math.sqrt(texts)) if texts > 1 else math.inf
        return _estimate(mean, error, max(1.0, texts - 1.0), level)
    by_seed, by_text = cells.mean(1), cells.mean(0)
    rest = cells - by_seed[:, None] - by_text[None] + mean
    squares = texts * by_seed.var(ddof=1), seeds * by_text.var(ddof=1) if texts > 1 else 0.0
    both = float((rest**2).sum()) / max(1, (seeds - 1) * (texts - 1))
    variance = max(squares[0] + squares[1] - both, *squares)
    parts = (squares[0], seeds - 1), (squares[1], texts - 1), (both, (seeds - 1) * (texts - 1))
    spread = sum(square**2 / freedom for square, freedom in parts if freedom)
    freedom = max(1.0, variance**2 / spread) if spread > 0 else math.inf
    return _estimate(mean, math.sqrt(variance / (seeds * texts)), freedom, level)


def _estimate(mean: float, error: float, freedom: float, level: float) -> Estimate:
    margin = student_quantile(1 - level / 2, freedom) * error if error else 0.0
    return Estimate(mean, float(error), float(freedom), margin)


def in_stretches(values: Values, most: int = _STRETCHES) -> Values:
    """`values` (seeds, text positions in order) as means of at most `most` spans of about equal length."""
    parts = np.array_split(np.asarray(values, np.float64), min(most, values.shape[1]), axis=1)
    return np.stack([part.mean(1) for part in parts], 1)


__all__ = ["LEVEL", "Estimate", "Values", "crossed", "in_stretches"]
