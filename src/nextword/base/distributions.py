"""Quantiles and tails of the normal, Student's t, binomial and chi-squared distributions, without scipy."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300
_PRECISION = 1e-15


def normal_quantile(share: float) -> float:
    """The value below which `share` of the standard normal distribution lies."""
    return NormalDist().inv_cdf(share)


def student_cdf(t: float, freedom: float) -> float:
    """P(T <= t) of Student's t; `freedom` may be infinite."""
    if math.isinf(freedom):
        return NormalDist().cdf(t)
    tail = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t), t * t / (freedom + t * t)) / 2
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=1000)
def student_quantile(share: float, freedom: float) -> float:
    """The value below which `share` of Student's t lies; `freedom` may be infinite."""
    if share < 0.5:
        return -student_quantile(1 - share, freedom)
    if math.isinf(freedom) or share == 0.5:
        return normal_quantile(share)
    low, high = 0.0, 2.0
    while 1 - student_cdf(high, freedom) > 1 - share and high < 1e300:
        low, high = high, high * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return high


def binomial_cdf(successes: int, trials: int, chance: float) -> float:
    """P(X <= successes) of `trials` draws that each succeed with `chance`."""
    if successes < 0:
        return 0.0
    return 1.0 if successes >= trials else incomplete_beta(trials - successes, successes + 1, 1 - chance, chance)


def binomial_pmf(successes: int, trials: int, chance: float) -> float:
    """P(X = successes) of `trials` draws that each succeed with `chance`."""
    failures = trials - successes
    if not 0 < chance < 1:
        return float((failures if chance else successes) == 0)
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(failures + 1)
    return math.exp(ways + successes * math.log(chance) + failures * math.log1p(-chance))


class BinomialTail:
    """P(X <= successes), followed as the trials and the successes grow one by one, at a few multiplications a step."""

    def __init__(self, successes: int, trials: int, chance: float) -> None:
        self.successes, self.trials, self.chance = successes, trials, chance
        self.below = binomial_cdf(successes, trials, chance)
        self.mass = binomial_pmf(successes, trials, chance)

    @property
    def next_mass(self) -> float:
        """P(X = successes + 1)."""
        odds = self.chance / (1 - self.chance)
        return self.mass * odds * (self.trials - self.successes) / (self.successes + 1)

    def add_success(self) -> None:
        """Move to P(X <= successes + 1)."""
        self.mass = self.next_mass
        self.below += self.mass
        self.successes += 1

    def add_trial(self) -> None:
        """Move to one trial more."""
        self.below -= self.chance * self.mass
        self.trials += 1
        self.mass *= (1 - self.chance) * self.trials / (self.trials - self.successes)


def chi_squared_tail(value: float, freedom: int) -> float:
    """P(X > value) of chi-squared with a whole number of degrees of freedom: a finite sum."""
    half = value / 2
    if half <= 0:
        return 1.0
    odd = freedom % 2
    powers = ((k + odd / 2) * math.log(half) - half - math.lgamma(k + odd / 2 + 1) for k in range(freedom // 2))
    return (math.erfc(math.sqrt(half)) if odd else 0.0) + math.fsum(map(math.exp, powers))


def incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularized incomplete beta function I_x(a, b); `rest` is 1 - x, given apart because it may be tiny."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction below converges slowly, its mirror image does not
        return 1 - incomplete_beta(b, a, rest, x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(scale) / a * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), by Lentz's method (DLMF 8.17.22 and 3.10(iii))."""
    up, down = 1.0, 1 / (1 - (a + b) * x / (a + 1) or _TINY)
    value = down
    for m in itertools.count(1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for factor in (even, odd):
            up = 1 + factor / up or _TINY
            down = 1 / (1 + factor * down or _TINY)
            value *= up * down
        if not abs(up * down - 1) > _PRECISION:
            break
    return value
