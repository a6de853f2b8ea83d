"""Forecasts the final held-out loss of a run while it goes on, from its own curve.

One linear model of logarithms describes the last part of the curve. The training loss is a parabola in u, the logarithm
of the learning rates summed so far (a power law that flattens), plus a term in the current rate: what its decay brings.
The sum of rates as the measure of progress, and a term for annealing, are those of Tissue et al. 2024 (2408.11029). The
held-out loss is that and a gap, which is linear in u. The coefficients have priors from finished runs
(benchmarks/forecast.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_STEPS = 60  # no forecast before
_NEAR, _BACK = 0.5, 0.8  # in u: the part of the curve that is used, at least, and as a multiple of what is ahead
_BINS, _FEWEST_BINS = 40, 6
_UNKNOWN = 100.0  # deviation of a coefficient of which nothing is known
_SAME_TEXT = 0.004  # of what a sample is off, where that was measured
_QUANTILE = 1.645  # of the normal distribution: 90% between
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Normal:
    """A mean and a standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Prior:
    """What finished runs were like, in logarithms of losses."""

    slope: Normal
    bend: Normal
    annealing: Normal  # for the rate as a share of the highest
    gap: Normal  # of the held-out loss above the training loss
    gap_slope: Normal
    sampling: float  # deviation of what the loss of a held-out sample is off
    evaluation: float  # of an evaluation around the model
    roughness: float  # of the training loss around it
    error: float  # of forecasts, besides what follows from all this
    doubt: float  # the same, as a share of the decrease that is expected


PRIOR = Prior(
    slope=Normal(-0.22, 0.08), bend=Normal(0.01, 0.01), annealing=Normal(0.05, 0.015), gap=Normal(0.0, 0.1),
    gap_slope=Normal(0.0, 0.02), sampling=0.03, evaluation=0.006, roughness=0.008, error=0.01, doubt=0.35,
)  # fmt: skip


@dataclass
class History:
    """A run's curve up to now, from its lines of metrics.jsonl in order."""

    losses: list[float] = field(default_factory=list)  # of each step; NaN: rejected
    rates: list[float] = field(default_factory=list)
    evaluations: dict[tuple[int, bool], float] = field(default_factory=dict)  # by the steps done, and if of a sample

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line; a step that was done before, in a session that was lost or rewound, replaces what followed it."""
        if "loss" in row:
            step = int(row["step"])
            if step < len(self.losses):
                del self.losses[step:], self.rates[step:]
                self.evaluations = {at: nats for at, nats in self.evaluations.items() if at[0] <= step}
            self.losses.append(math.nan if row.get("action") else float(row["loss"]))
            self.rates.append(float(row["learning_rate"]))
        elif "val" in row:
            sample = bool(row["val"].get("sample"))
            self.evaluations[int(row["step"]), sample] = float(row["val"]["nats_per_token"])

    def forecast(self, later: ArrayLike) -> Forecast | None:
        """The forecast, with the learning rates of the steps to come; None while the curve is too short."""
        evaluations = [(step, nats, sample) for (step, sample), nats in self.evaluations.items()]
        return forecast(self.losses, self.rates, later, evaluations)


@dataclass(frozen=True)
class Forecast:
    """The held-out loss expected at a run's end, in nats per token, with a 90% interval."""

    nats_per_token: float
    low: float
    high: float


@dataclass(frozen=True)
class Observed:
    """Observations of the linear model: arguments (n, 6), values (n,) and weights (n,)."""

    places: Array
    values: Array
    weights: Array


def forecast(
    losses: ArrayLike, rates: ArrayLike, later: ArrayLike, evaluations: ArrayLike, prior: Prior = PRIOR
) -> Forecast | None:
    """The forecast after some steps; None while the curve is too short.

    `losses`: (steps,) of training, NaN where a step was rejected. `rates`: (steps,), the learning rates. `later`:
    (steps to come,), those planned. `evaluations`: (n, 3), steps done, held-out loss, and whether it is a sample's.
    """
    past, ahead = np.asarray(rates, np.float64), np.asarray(later, np.float64)
    if len(past) < LEAST_STEPS:
        return None
    highest = max(past.max(), ahead.max(initial=0.0))
    u, end = np.log(np.cumsum(past) / past.sum()), math.log1p(float(ahead.sum() / past.sum()))
    begin = -max(_NEAR, _BACK * end)
    logs = np.log(np.asarray(losses, np.float64))
    curve = _curve(logs, u, past / highest, begin, prior.roughness)
    if len(curve.values) < _FEWEST_BINS:
        return None
    held_out, unlike = _held_out(np.asarray(evaluations, np.float64).reshape(-1, 3), prior.sampling)
    mean, covariance = _posterior([curve, _observed(held_out, u, past / highest, begin, prior.evaluation)], prior)
    last = (ahead[-1] if len(ahead) else past[-1]) / highest
    at = _places(np.array([end]), np.array([last]), 1.0)[0]
    fall = mean[1] * end + mean[2] * end**2
    variance = float(at @ covariance @ at) + unlike**2 + prior.error**2 + (prior.doubt * fall) ** 2
    return Forecast(*(math.exp(float(at @ mean) + z * math.sqrt(variance)) for z in (0.0, -_QUANTILE, _QUANTILE)))


def _places(u: Array, shares: Array, held_out: float) -> Array:
    """(n,) and (n,), rates as shares of the highest -> (n, 6): the arguments of the model, 0 or 1 for `held_out`."""
    one = np.ones_like(u)
    return np.stack([one, u, u**2, shares, held_out * one, held_out * u], 1)


def _curve(logs: Array, u: Array, shares: Array, begin: float, roughness: float) -> Observed:
    """The training loss from u = `begin` on, in bins equally wide in u."""
    inside = (u > begin) & np.isfinite(logs)
    logs, u, shares = logs[inside], u[inside], shares[inside]
    number = np.minimum((u / begin * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(number, minlength=_BINS)
    filled = counts > 0

    def mean(values: Array) -> Array:
        means: Array = np.bincount(number, values, _BINS)[filled] / counts[filled]
        return means

    middles = mean(logs)
    around = logs - middles[np.cumsum(filled)[number] - 1]
    noise = float(around @ around) / max(1, len(logs) - len(middles))
    return Observed(_places(mean(u), mean(shares), 0.0), middles, 1.0 / (noise / counts[filled] + roughness**2))


def _held_out(evaluations: Array, sampling: float) -> tuple[Array, float]:
    """Evaluations, (n, 2), steps done and logarithm of the loss, and a deviation for all of them.

    Those of a sample are corrected by what it is off where both it and the whole text were evaluated.
    """
    known = evaluations[evaluations[:, 0] > 0]
    steps, logs, sampled = known[:, 0], np.log(known[:, 1]), known[:, 2] > 0
    if sampled.all():
        return np.stack([steps, logs], 1), sampling if len(known) else 0.0
    if sampled.any():
        whole = int(np.argmax(~sampled))
        after = np.log(steps[sampled] / steps[whole])
        near = np.argsort(np.abs(after))[:2]  # the line through these: one may be of the same step
        line = np.polyfit(after[near], logs[sampled][near], len(near) - 1)
        logs = logs - (line[-1] - logs[whole]) * sampled
    return np.stack([steps, logs], 1), _SAME_TEXT


def _observed(held_out: Array, u: Array, shares: Array, begin: float, deviation: float) -> Observed:
    """The evaluations from u = `begin` on."""
    steps = held_out[:, 0].astype(int) - 1
    inside = u[steps] >= begin
    steps = steps[inside]
    return Observed(_places(u[steps], shares[steps], 1.0), held_out[inside, 1], np.full(len(steps), deviation**-2))


def _posterior(observed: Sequence[Observed], prior: Prior) -> tuple[Array, Array]:
    """Coefficients of the model, (6,), and their covariance, (6, 6) (Bishop 2006, eq. 3.50)."""
    priors = (Normal(0.0, _UNKNOWN), prior.slope, prior.bend, prior.annealing, prior.gap, prior.gap_slope)
    places = np.concatenate([each.places for each in observed])
    weighted = places * np.concatenate([each.weights for each in observed])[:, None]
    precision = np.diag([normal.deviation**-2 for normal in priors])
    covariance: Array = np.linalg.inv(precision + places.T @ weighted).astype(np.float64)
    values = np.concatenate([each.values for each in observed])
    centre = np.array([normal.mean for normal in priors])
    mean: Array = covariance @ (precision @ centre + weighted.T @ values)
    return mean, covariance
