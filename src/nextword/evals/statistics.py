"""Error bars: estimates with intervals, and components of their errors.

Follows Miller 2024, "Adding Error Bars to Evals" (2411.00640), whose equations are cited.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..base.distributions import normal_quantile, student_quantile

LEVEL = 0.05  # two-sided; 95% intervals


@dataclass(frozen=True)
class Estimate:
    """A mean of scores, its standard error and 95% interval."""

    value: float
    standard_error: float
    low: float
    high: float
    count: int
    freedom: float  # degrees of `standard_error`


def estimate(scores: np.ndarray, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of `scores` (items,), as a sample of all such items.

    Scores of 0 and 1 have Wilson's interval (1927), valid for small counts and near the ends; others Student's t.
    With `groups` the error is clustered (Miller eq. 4), as if groups were sampled, not items.
    """
    count, mean = len(scores), float(np.mean(scores))
    binary = is_binary(scores)
    if groups is not None:
        error, clusters = clustered_error(scores, groups)
        if binary and mean in (0, 1):  # no variation between groups: use the number of groups as the count
            return Estimate(mean, error, *wilson(mean * clusters, clusters), count, clusters - 1)
        return _around(mean, error, clusters - 1, count, scores)
    if binary:
        low, high = wilson(round(mean * count), count)
        return Estimate(mean, math.sqrt(mean * (1 - mean) / max(1, count - 1)), low, high, count, count - 1)
    error = float(np.std(scores, ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    return _around(mean, error, count - 1, count, scores)


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """As "0.912 [0.861, 0.948]"; with the `sign` "+", for differences, "+0.012 [-0.003, +0.027]"."""
    return f"{value:{sign}z.3f} [{low:{sign}z.3f}, {high:{sign}z.3f}]"  # z: no -0.000


def _around(mean: float, error: float, freedom: float, count: int, scores: np.ndarray) -> Estimate:
    low, high = Errors(count, error, freedom).interval(mean, is_share(scores))
    return Estimate(mean, error, low, high, count, freedom)


def is_binary(scores: np.ndarray) -> bool:
    """Whether all are 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def is_share(scores: np.ndarray) -> bool:
    """Whether all lie in [0, 1]."""
    return bool(scores.size) and float(np.min(scores)) >= 0 and float(np.max(scores)) <= 1


def student(freedom: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t."""
    return student_quantile(1 - level / 2, freedom)


def normal(level: float = LEVEL) -> float:
    """Two-sided quantile of the normal distribution."""
    return normal_quantile(1 - level / 2)


def wilson(right: float, count: float, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): 17 of 20 gives .640 to .948."""
    z, share = normal(level), right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return (max(0.0, middle - half) if right else 0.0), (min(1.0, middle + half) if right != count else 1.0)


def clustered_error(scores: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Standard error of the mean of grouped items, and the effective number of groups.

    √(s²/n + Σ_g Σ_{i≠j in g} (s_i - mean)(s_j - mean) / n²): the covariance within groups is added to the
    error of independent items (Miller eq. 4). A few large groups dominate that error, so the effective number of
    unequal groups is smaller: n² / Σ n_g² (Kish 1965), their number if all have the same size.
    """
    _, number, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    gaps, count = scores - np.mean(scores), len(scores)
    sums = np.bincount(number, weights=gaps)
    together = float((sums**2).sum() - (gaps**2).sum())
    alone = float((gaps**2).sum()) / max(1, count - 1) / count
    return math.sqrt(max(0.0, alone + together / count**2)), count**2 / float((sizes**2).sum())


@dataclass(frozen=True)
class Errors:
    """Components of the standard error of a mean: items, and few-shot seeds (or permutations of one seed)."""

    count: int  # items
    of_items: float  # reduced by more items
    items_freedom: float
    seeds: int = 1
    of_seeds: float = 0.0  # reduced by more seeds
    seen: float = 0.0  # as `of_seeds`, including the noise of items
    seeds_freedom: int = 0  # degrees of `seen`; 0 for one seed in one permutation
    unit: str = "few-shot seeds"

    @property
    def total(self) -> float:
        """The standard error: at least that of the seeds alone."""
        return max(math.hypot(self.of_items, self.of_seeds), self.seen)

    @property
    def freedom(self) -> float:
        """Its degrees of freedom (Satterthwaite 1946).

        The seeds count with their observed variance: two that happen to agree do not show that others would.
        """
        if self.seeds_freedom == 0 or self.items_freedom <= 0 or not math.isfinite(self.total):
            return self.items_freedom
        parts = self.of_items**4 / self.items_freedom + self.seen**4 / self.seeds_freedom
        least = min(self.items_freedom, self.seeds_freedom)
        return max(least, self.total**4 / parts) if parts else least

    def half(self, level: float = LEVEL) -> float:
        """Half-width of Student's interval."""
        return student(self.freedom, level) * self.total if self.freedom > 0 else math.inf

    def interval(self, mean: float, share: bool, level: float = LEVEL) -> tuple[float, float]:
        """Student's interval around `mean`; for a share, on the log-odds scale, which is valid near 0 and 1."""
        half = self.half(level)
        if not share:
            return mean - half, mean + half
        if not 0 < mean < 1:  # all equal
            return (0.0, 1.0) if math.isinf(half) else (mean, mean)
        middle, half = log_odds(mean), half / (mean * (1 - mean))
        return _share(middle - half), _share(middle + half)

    def scaled(self, items: float, seeds: float) -> Errors:
        """The errors with other numbers of items and seeds of the same kind."""
        more, sets = items / self.count, seeds / self.seeds
        noise = max(0.0, self.seen**2 - self.of_seeds**2) / more
        return replace(
            self,
            count=math.ceil(items),
            of_items=self.of_items / math.sqrt(more),
            items_freedom=self.items_freedom * more,
            seeds=math.ceil(seeds),
            of_seeds=self.of_seeds / math.sqrt(sets),
            seen=math.sqrt((self.of_seeds**2 + noise) / sets),
            seeds_freedom=math.ceil(seeds) - 1 if self.seeds_freedom else 0,
        )


def log_odds(share: float) -> float:
    """ln of share / (1 - share), for 0 < share < 1."""
    return math.log(share / (1 - share))


def _share(odds: float) -> float:
    return 0.5 * (1 + math.tanh(odds / 2))


def errors_of(count: int, of_items: float, items_freedom: float, own: Spread | None, shape: tuple[int, ...]) -> Errors:
    """Errors from the items' error and the spread over seeds and permutations, if any, of scores of `shape`."""
    if own is None:
        return Errors(count, of_items, items_freedom)
    seeds, unit = (shape[0], "few-shot seeds") if shape[0] > 1 else (shape[1], "permutations")
    return Errors(count, of_items, items_freedom, seeds, own.of_seeds, own.seen, own.freedom, unit)


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the mean over all items between seeds and between permutations.

    `of_seeds` is their contribution to the standard error of the overall mean.
    """

    seeds: float
    permutations: float
    items: float  # between items, each item's score averaged over seeds and permutations
    of_seeds: float
    seen: float  # as `of_seeds`, including the noise of items
    freedom: int  # degrees of `seen`

    def widened(self, alone: Estimate, share: bool = False) -> Estimate:
        """`alone`, widened to cover other few-shot seeds as well; `share`: scores lie in [0, 1]."""
        errors = errors_of(alone.count, alone.standard_error, alone.freedom, self, (self.freedom + 1, 1))
        low, high = errors.interval(alone.value, share)
        return replace(alone, standard_error=errors.total, low=min(low, alone.low), high=max(high, alone.high))


def spread(cube: np.ndarray) -> Spread:
    """Components of variance of scores (seeds, permutations, items), by moments (Searle et al. 1992, ch. 4).

    The items are the same in every cell, so cell means differ by seeds, by permutations within them, and by the items'
    interactions with both: these two noises, Var(residual)/items, are subtracted. Never negative.
    """
    seeds, permutations, items = cube.shape
    by_seed = cube.mean(1)  # (seeds, items)
    of_permutations = _beyond_noise(cube) if permutations > 1 else (0.0, 0.0)
    of_seeds = _beyond_noise(by_seed[None]) if seeds > 1 else (0.0, 0.0)
    own = float(by_seed.mean(0).std(ddof=1)) if items > 1 else 0.0
    if seeds > 1:
        added, seen, freedom = of_seeds[0] / seeds, of_seeds[1] / seeds, seeds - 1
    else:
        added, seen, freedom = of_permutations[0] / permutations, of_permutations[1] / permutations, permutations - 1
    return Spread(
        math.sqrt(max(0.0, of_seeds[0] - of_permutations[0] / permutations)), math.sqrt(of_permutations[0]), own,
        math.sqrt(added), math.sqrt(seen), freedom,
    )  # fmt: skip


def _beyond_noise(cube: np.ndarray) -> tuple[float, float]:
    """Variance along the middle axis of means over items, without and with the noise of the items."""
    items, means = cube.shape[2], cube.mean(2, keepdims=True)
    residual = cube - means - cube.mean(1, keepdims=True) + means.mean(1, keepdims=True)
    freedom = cube.shape[0] * (cube.shape[1] - 1) * max(1, items - 1)
    seen = float(means.var(axis=1, ddof=1).mean())
    return max(0.0, seen - float((residual**2).sum()) / freedom / items), seen


def majority_accuracy(seen: Sequence[Any], gold: Sequence[Any]) -> float:
    """Accuracy on `gold` of always answering with the most frequent label in `seen`."""
    best = Counter(seen).most_common(1)[0][0]
    return float(np.mean([answer == best for answer in gold]))
