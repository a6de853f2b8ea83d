"""Forecasts the final held-out loss of a run while it goes on, from its own curve.

The logarithm of the training loss is, over the last part of the curve, a parabola in the logarithm of the learning
rates summed so far (a power law that flattens), plus a term in the current rate: what its decay brings. The sum of
rates as the measure of progress, and a term for annealing, are those of Tissue et al. 2024 (2408.11029). Slope, bend
and annealing have priors from finished runs (benchmarks/forecast.py); held-out losses so far tell how far training and
held-out loss are apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_STEPS = 60  # no forecast before
_NEAR, _BACK = 0.5, 0.8  # in u, below: the part of the curve that is used, at least, and as a multiple of what is ahead
_BINS, _FEWEST_BINS = 40, 6
_UNKNOWN, _GAP = 100.0, 0.1  # deviations of the models' constants where nothing is known: loss, and gap
_KNOWN, _AROUND = 1.6, 20  # evaluations with a u below -1.6 are left out; steps around one: a twentieth
_GAP_NOISE = 0.01  # of what a single evaluation is above the training loss around it
_QUANTILE = 1.645  # of the normal distribution: 90% between
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Normal:
    """A mean and a standard deviation."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Prior:
    """What finished runs were like, in logarithms of losses and of summed rates."""

    slope: Normal
    bend: Normal
    annealing: Normal  # for the rate as a share of the highest
    gap_slope: Normal  # of the held-out loss above the training loss
    sampling: Normal  # of a held-out sample's loss above that of all of the held-out text
    roughness: float  # of a curve around the parabola
    error: float  # of forecasts, besides what follows from the curve
    doubt: float  # the same, as a share of the decrease that is expected


PRIOR = Prior(
    slope=Normal(-0.18, 0.03), bend=Normal(0.02, 0.012), annealing=Normal(0.035, 0.015), gap_slope=Normal(0.0, 0.01),
    sampling=Normal(0.0, 0.03), roughness=0.006, error=0.01, doubt=0.2,
)  # fmt: skip


@dataclass
class History:
    """A run's curve up to now, from its lines of metrics.jsonl in order."""

    losses: list[float] = field(default_factory=list)  # of each step; NaN: rejected
    rates: list[float] = field(default_factory=list)
    evaluations: dict[int, tuple[float, bool]] = field(default_factory=dict)  # by the steps done: loss, of a sample

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line; a step that was done before, in a session that was lost or rewound, replaces what followed it."""
        if "loss" in row:
            step = int(row["step"])
            if step < len(self.losses):
                del self.losses[step:], self.rates[step:]
                self.evaluations = {at: found for at, found in self.evaluations.items() if at <= step}
            self.losses.append(math.nan if row.get("action") else float(row["loss"]))
            self.rates.append(float(row["learning_rate"]))
        elif "val" in row:
            self.evaluations[int(row["step"])] = float(row["val"]["nats_per_token"]), bool(row["val"].get("sample"))

    def forecast(self, later: ArrayLike) -> Forecast | None:
        """The forecast, with the learning rates of the steps to come; None while the curve is too short."""
        evaluations = [(step, *found) for step, found in self.evaluations.items()]
        return forecast(self.losses, self.rates, later, evaluations)


@dataclass(frozen=True)
class Forecast:
    """The held-out loss expected at a run's end, in nats per token, with a 90% interval."""

    nats_per_token: float
    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A linear model's coefficients after the data: (k,) and their covariance, (k, k)."""

    mean: Array
    covariance: Array

    def at(self, place: Array) -> tuple[float, float]:
        """Its value at a place, (k,), and the variance of that."""
        return float(place @ self.mean), float(place @ self.covariance @ place)


def forecast(
    losses: ArrayLike, rates: ArrayLike, later: ArrayLike, evaluations: ArrayLike, prior: Prior = PRIOR
) -> Forecast | None:
    """The forecast after some steps; None while the curve is too short.

    `losses`: (steps,) of training, NaN where a step was rejected. `rates`: (steps,), the learning rates. `later`:
    (steps to come,), those planned. `evaluations`: (n, 3), steps done, held-out loss, and whether it is a sample's.
    """
    past, ahead = np.asarray(rates, np.float64), np.asarray(later, np.float64)
    highest = max(past.max(initial=0.0), ahead.max(initial=0.0))
    end = math.log1p(float(ahead.sum() / past.sum())) if len(past) else 0.0
    fitted = fit(losses, past / highest, evaluations, prior, end)
    if fitted is None:
        return None
    curve, gap = fitted
    share = (ahead[-1] if len(ahead) else past[-1]) / highest
    value, variance = curve.at(np.array([1.0, end, end**2, share]))
    above, doubt = gap.at(np.array([1.0, end, 0.0]))
    fall = curve.mean[1] * end + curve.mean[2] * end**2
    deviation = math.sqrt(variance + doubt + prior.error**2 + (prior.doubt * fall) ** 2)
    low, middle, high = (math.exp(value + above + z * deviation) for z in (-_QUANTILE, 0.0, _QUANTILE))
    return Forecast(middle, low, high)


def fit(
    losses: ArrayLike, shares: Array, evaluations: ArrayLike, prior: Prior, end: float
) -> tuple[Fitted, Fitted] | None:
    """Models of the curve's last part: of the training loss, and of how far the held-out loss is above it.

    In logarithms. `shares`: (steps,), learning rates as shares of the highest. Arguments of the first model: one, u
    (the logarithm of the summed rates over those up to now), its square, and the share; of the second: one, u, and 1
    for a sample of the held-out text. `end`: u at the run's end.
    """
    logs = np.log(np.asarray(losses, np.float64))
    if len(logs) < LEAST_STEPS:
        return None
    u = np.log(np.cumsum(shares) / shares.sum())
    means, middles, weights = _binned(logs, u, shares, -max(_NEAR, _BACK * end), prior.roughness)
    if len(middles) < _FEWEST_BINS:
        return None
    priors = (Normal(0.0, _UNKNOWN), prior.slope, prior.bend, prior.annealing)
    curve = _posterior(_places(means[0], means[1]), middles, weights, priors)
    return curve, _gap(logs, u, np.asarray(evaluations, np.float64).reshape(-1, 3), prior)


def _gap(logs: Array, u: Array, evaluations: Array, prior: Prior) -> Fitted:
    """The second model of `fit`. A held-out loss is compared with the training loss of the steps around it."""
    places, gaps = [], []
    for step, nats, sample in evaluations:
        at, around = int(step) - 1, min(max(len(logs) // _AROUND, 5), len(logs) - int(step) + 5)
        near = logs[max(0, at - around) : at + around]
        if at >= 0 and u[at] > -_KNOWN and np.isfinite(near).any():
            places.append((1.0, u[at], sample))
            gaps.append(math.log(nats) - float(np.nanmean(near)))
    weights = np.full(len(gaps), _GAP_NOISE**-2)
    priors = (Normal(0.0, _GAP), prior.gap_slope, prior.sampling)
    return _posterior(np.array(places).reshape(-1, 3), np.array(gaps), weights, priors)


def _places(u: Array, shares: Array) -> Array:
    """(n,), (n,) -> (n, 4): the arguments of the first model."""
    return np.stack([np.ones_like(u), u, u**2, shares], 1)


def _binned(
    logs: Array, u: Array, shares: Array, begin: float, roughness: float
) -> tuple[tuple[Array, Array], Array, Array]:
    """The curve from u = `begin` on in bins equally wide in u: (bins,) means of u and shares, of logs, and weights."""
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
    return (mean(u), mean(shares)), middles, 1.0 / (noise / counts[filled] + roughness**2)


def _posterior(places: Array, values: Array, weights: Array, priors: Sequence[Normal]) -> Fitted:
    """Coefficients of a linear model with normal priors (Bishop 2006, eq. 3.50)."""
    centre = np.array([prior.mean for prior in priors])
    precision = np.diag([prior.deviation**-2 for prior in priors])
    weighted = places * weights[:, None]
    covariance: Array = np.linalg.inv(precision + places.T @ weighted).astype(np.float64)
    return Fitted(covariance @ (precision @ centre + weighted.T @ values), covariance)
