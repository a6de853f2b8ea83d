"""Learning rates: a scan at the two smallest sizes, and a power of the size through its optima."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..plan.rates import POWER, small_rate
from ..spec import ModelKind

STEEPEST, FLATTEST = -0.5, -0.25  # powers of M: what published rules and small runs have
_RATES, _MOST = 4, 7  # of a scan, to begin with and after it was widened
_APART = 2.0


@dataclass(frozen=True)
class Best:
    """The best rate of a scan. Not `bracketed`: it is the lowest or highest that was tried."""

    size: float  # M
    rate: float
    bracketed: bool


@dataclass(frozen=True)
class RateRule:
    """rate(M) = `rate` · (M / `size`)^`power`, through the scanned optima `best`."""

    rate: float
    size: float
    power: float
    best: tuple[Best, ...]

    def at(self, size: float) -> float:
        """The learning rate of a model of M = `size`, to three digits."""
        return three_digits(self.rate * (size / self.size) ** self.power)


def scan(kind: ModelKind, size: float, batch_tokens: int) -> tuple[float, ...]:
    """The first rates to try, around a guess."""
    guess = small_rate(kind, size, batch_tokens)
    return tuple(three_digits(guess * _APART ** (number - (_RATES - 1) / 2)) for number in range(_RATES))


def more(losses: Mapping[float, float]) -> float | None:
    """A rate to try besides those whose losses are known (infinite: diverged); None where the best is bracketed."""
    rates = sorted(losses)
    best = min(rates, key=losses.__getitem__)
    if len(rates) >= _MOST or not math.isfinite(losses[best]):
        return three_digits(rates[0] / _APART) if len(rates) < _MOST else None
    if best == rates[0]:
        return three_digits(rates[0] / _APART)
    return three_digits(rates[-1] * _APART) if best == rates[-1] else None


def best_rate(size: float, losses: Mapping[float, float]) -> Best | None:
    """The minimum of the parabola in log rate through the best rate and its neighbours; None if all diverged."""
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda index: losses[rates[index]])
    rate = rates[place]
    if not math.isfinite(losses[rate]):
        return None
    if place in (0, len(rates) - 1):
        return Best(size, rate, False)
    around = rates[place - 1 : place + 2]
    if not all(math.isfinite(losses[each]) for each in around):
        return Best(size, rate, True)
    return Best(size, three_digits(math.exp(_vertex([math.log(r) for r in around], [losses[r] for r in around]))), True)


def rule(found: Sequence[Best]) -> RateRule | None:
    """The rule through the optima of one or two sizes; None without any.

    The power is limited to what is plausible: two scans of a few runs do not determine it well.
    """
    if not found:
        return None
    power = POWER  # where only one size was scanned
    if len(found) > 1:
        small, large = sorted(found, key=lambda best: best.size)[:2]
        slope = math.log(large.rate / small.rate) / math.log(large.size / small.size)
        power = min(FLATTEST, max(STEEPEST, slope))
    rate = math.exp(sum(math.log(best.rate) for best in found) / len(found))
    size = math.exp(sum(math.log(best.size) for best in found) / len(found))
    return RateRule(rate, size, power, tuple(found))


def three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Where the parabola through three points is lowest, the middle one being the lowest of them."""
    left, right = x[1] - x[0], x[2] - x[1]
    before, after = (y[1] - y[0]) / left, (y[2] - y[1]) / right
    if after <= before:
        return x[1]
    return (x[0] + x[1]) / 2 - before * (left + right) / 2 / (after - before)
