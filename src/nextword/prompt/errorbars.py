"""Error bars: intervals, paired comparisons, spread and power, for scores of many items.

Miller 2024, "Adding Error Bars to Evals" (2411.00640), is the guide; equations are its own where it is cited.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LEVEL = 0.05  # two-sided; intervals hold 95%
POWER = 0.8
_DRAWS = 20_000  # of a permutation test that cannot be counted out


@dataclass(frozen=True)
class Estimate:
    """A mean of scores, its standard error and the interval that holds the true one 95 times in 100."""

    value: float
    standard_error: float
    low: float
    high: float
    count: int
    freedom: int  # degrees of `standard_error`


def estimate(scores: np.ndarray, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of `scores` (items,), as a sample of all such items.

    Scores of 0 and 1 have Wilson's interval (1927), which holds at small counts and near the ends; others Student's t.
    With `groups` the error is clustered (Miller eq. 4), as if the groups had been drawn, not the items.
    """
    count, mean = len(scores), float(np.mean(scores))
    if groups is not None:
        error, clusters = clustered_error(scores, groups)
        return _around(mean, error, clusters - 1, count, scores)
    binary = bool(np.isin(scores, (0.0, 1.0)).all())
    if binary:
        low, high = wilson(round(mean * count), count)
        return Estimate(mean, math.sqrt(mean * (1 - mean) / max(1, count - 1)), low, high, count, count - 1)
    error = float(np.std(scores, ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    return _around(mean, error, count - 1, count, scores)


def _around(mean: float, error: float, freedom: int, count: int, scores: np.ndarray) -> Estimate:
    """Student's interval, cut where scores that are shares cannot be."""
    half = student(freedom) * error if freedom > 0 else math.inf
    within = bool(len(scores)) and float(np.min(scores)) >= 0 and float(np.max(scores)) <= 1
    low, high = (max(0.0, mean - half), min(1.0, mean + half)) if within else (mean - half, mean + half)
    return Estimate(mean, error, low, high, count, freedom)


def student(freedom: float, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t."""
    from scipy import stats

    return float(stats.t.ppf(1 - level / 2, freedom))


def normal(level: float = LEVEL) -> float:
    """Two-sided quantile of the normal distribution."""
    from scipy import special

    return float(special.ndtri(1 - level / 2))


def wilson(right: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): 17 of 20 gives .640 to .948."""
    z, share = normal(level), right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def clustered_error(scores: np.ndarray, groups: Sequence[str]) -> tuple[float, int]:
    """Standard error of the mean of items that come in groups, and the number of groups.

    √(s²/n + Σ_g Σ_{i≠j in g} (s_i - mean)(s_j - mean) / n²): what items of a group have in common is added to the
    error of independent items (Miller eq. 4).
    """
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    gaps, count = scores - np.mean(scores), len(scores)
    sums = np.bincount(number, weights=gaps)
    together = float((sums**2).sum() - (gaps**2).sum())
    alone = float((gaps**2).sum()) / max(1, count - 1) / count
    return math.sqrt(max(0.0, alone + together / count**2)), len(sums)


@dataclass(frozen=True)
class Comparison:
    """Two ways of asking the same items: second less first. `p` is that of `test`."""

    difference: float
    standard_error: float  # paired; of items and draws
    of_items: float  # the part of it that more items would make smaller
    of_draws: float  # the part of it that more draws of shots would make smaller
    low: float
    high: float
    p: float
    test: str
    changed_share: float  # of the items whose score differs
    better: int  # items that scored more the second time
    worse: int
    count: int
    draws: int


def compare(after: np.ndarray, before: np.ndarray, groups: Sequence[str] | None = None) -> Comparison:
    """Compare scores (draws, orders, items), or (items,), item by item: what items and draws share cancels (eq. 7).

    One side may have a single draw (no shots) against several. One draw of 0/1 scores: McNemar's exact test; of
    others: a permutation test that swaps each pair. With `groups` or several draws: Student's t on the whole error.
    """
    gaps = _cube(after) - _cube(before)  # (draws, orders, items)
    mean_gaps = gaps.mean((0, 1))
    own = spread(gaps) if gaps.shape[0] * gaps.shape[1] > 1 else None
    of_items, freedom = _paired_error(mean_gaps, groups)
    of_draws = own.of_draws if own is not None else 0.0
    error = math.hypot(of_items, of_draws)
    whole = satterthwaite(error, of_items, freedom, own)
    half = student(whole) * error if whole > 0 else math.inf
    mean, (better, worse) = float(mean_gaps.mean()), (int((mean_gaps > 0).sum()), int((mean_gaps < 0).sum()))
    if groups is not None or own is not None:
        p, test = _student_p(mean, error, whole), "Student's t" + (", clustered" if groups is not None else "")
    elif all(bool(np.isin(scores, (0.0, 1.0)).all()) for scores in (after, before)):
        p, test = mcnemar(better, worse), "McNemar's exact test"
    else:
        p, test = permutation(mean_gaps), "paired permutation test"
    count = gaps.shape[2]
    return Comparison(
        mean, error, of_items, of_draws, mean - half, mean + half, p, test, float((gaps != 0).mean()), better, worse,
        count, gaps.shape[0],
    )  # fmt: skip


def _cube(scores: np.ndarray) -> np.ndarray:
    return scores if scores.ndim == 3 else scores[None, None]


def _paired_error(gaps: np.ndarray, groups: Sequence[str] | None) -> tuple[float, int]:
    """Standard error of the mean gap over items, and its degrees of freedom."""
    if groups is not None:
        error, clusters = clustered_error(gaps, groups)
        return error, clusters - 1
    if len(gaps) < 2:
        return math.inf, 0
    return float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))), len(gaps) - 1


def satterthwaite(error: float, of_items: float, freedom: float, own: Spread | None) -> float:
    """Degrees of freedom of an error of items (which has `freedom`) and draws (Satterthwaite 1946).

    The draws count as they were seen: two that happen to agree do not show that others would.
    """
    if own is None or own.freedom == 0:
        return freedom
    parts = (of_items**4 / freedom if freedom > 0 else 0.0) + own.seen**4 / own.freedom
    if parts == 0 or not math.isfinite(error):
        return freedom
    return max(own.freedom, error**4 / parts)


def _student_p(mean: float, error: float, freedom: float) -> float:
    from scipy import stats

    if error == 0 or freedom <= 0:
        return 1.0 if mean == 0 or freedom <= 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p that `better` and `worse` are tosses of a fair coin (McNemar 1947)."""
    from scipy import stats

    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse, 0.5).pvalue)


def permutation(gaps: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean gap when each pair may as well be the other way round.

    All 2^n ways where at most 15 gaps are not zero, else 20,000 drawn ones (counting the observed one).
    """
    moved = np.abs(gaps[gaps != 0])
    observed = abs(float(gaps.sum()))
    slack = 1e-9 * max(1.0, float(moved.sum()))
    if len(moved) <= 15:
        signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= observed - slack).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(_DRAWS // 1000):
        signs = 1 - 2 * generator.integers(0, 2, (1000, len(moved)))
        extreme += int((np.abs(signs @ moved) >= observed - slack).sum())
    return (extreme + 1) / (_DRAWS + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected so that any false alarm among all is rare (Holm 1979)."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda n: ps[n])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected


def items_needed(difference: float, changed_share: float, level: float = LEVEL, power: float = POWER) -> int:
    """Items that show `difference` with probability `power`, where `changed_share` of them change (Miller eq. 9).

    The variance of a paired gap of -1, 0 or 1 is changed_share - difference²; .22 and .08 give 262.
    """
    z = normal(level) + normal(2 * (1 - power))
    variance = max(changed_share, abs(difference)) - difference**2
    return math.ceil(z * z * variance / difference**2)


def visible_difference(count: int, changed_share: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest difference that `count` items show with probability `power` (Miller eq. 10, variance at most
    `changed_share`): 200 items of which 22% change show .0929.
    """
    return (normal(level) + normal(2 * (1 - power))) * math.sqrt(changed_share / count)


@dataclass(frozen=True)
class Spread:
    """Where scores differ from: standard deviations of a mean over all items between draws of shots and between
    orders of one draw, and the standard error that draws and orders add to the mean over them (`of_draws`).
    """

    draws: float
    orders: float
    items: float  # of the items' own difficulty, one item's score averaged over draws and orders
    of_draws: float
    seen: float  # as `of_draws`, with the noise of items still in it
    freedom: int  # degrees of `seen`

    def widened(self, found: Estimate) -> Estimate:
        """`found`, as an estimate over other draws of shots as well."""
        error = math.hypot(found.standard_error, self.of_draws)
        freedom = satterthwaite(error, found.standard_error, found.freedom, self)
        half = student(freedom) * error if freedom > 0 else math.inf
        low, high = found.value - half, found.value + half
        if found.low >= 0 and found.high <= 1:
            low, high = max(0.0, low), min(1.0, high)
        return replace(found, standard_error=error, low=min(low, found.low), high=max(high, found.high))


def spread(cube: np.ndarray) -> Spread:
    """Components of variance of scores (draws, orders, items), by the method of moments (Searle et al. 1992, ch. 4).

    The items are the same in every cell, so that cell means differ by draws, by orders within them, and because items
    answer differently to draws and to orders: these two noises, Var(residual)/items, are taken off. Never negative.
    """
    draws, orders, items = cube.shape
    by_draw = cube.mean(1)  # (draws, items)
    of_orders = _beyond_noise(cube) if orders > 1 else (0.0, 0.0)
    of_draws = _beyond_noise(by_draw[None]) if draws > 1 else (0.0, 0.0)
    own = float(by_draw.mean(0).std(ddof=1)) if items > 1 else 0.0
    if draws > 1:
        added, seen, freedom = of_draws[0] / draws, of_draws[1] / draws, draws - 1
    else:
        added, seen, freedom = of_orders[0] / orders, of_orders[1] / orders, orders - 1
    return Spread(
        math.sqrt(max(0.0, of_draws[0] - of_orders[0] / orders)), math.sqrt(of_orders[0]), own,
        math.sqrt(added), math.sqrt(seen), freedom,
    )  # fmt: skip


def _beyond_noise(cube: np.ndarray) -> tuple[float, float]:
    """Variance along the middle axis of means over items, first with the noise of the items taken off."""
    items, means = cube.shape[2], cube.mean(2, keepdims=True)
    residual = cube - means - cube.mean(1, keepdims=True) + means.mean(1, keepdims=True)
    freedom = cube.shape[0] * (cube.shape[1] - 1) * max(1, items - 1)
    seen = float(means.var(axis=1, ddof=1).mean())
    return max(0.0, seen - float((residual**2).sum()) / freedom / items), seen


def majority_accuracy(seen: Sequence[Any], gold: Sequence[Any]) -> float:
    """Accuracy on `gold` of always answering what is most frequent in `seen`."""
    best = Counter(seen).most_common(1)[0][0]
    return float(np.mean([each == best for each in gold]))


def verdict(after: str, before: str, found: Comparison, p: float, level: float = LEVEL) -> str:
    """Better, worse, or cannot be told, in a sentence."""
    gap = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p {_p(p)}"
    if p < level:
        word = "better" if found.difference > 0 else "worse"
        return f"{after} is {word} than {before}: {gap}"
    if found.difference == 0:
        changed = f"{found.changed_share:.0%} changed"
        return f"{after} and {before} scored the same on these {found.count:,} items ({changed})"
    return f"{after} against {before} cannot be told at {found.count:,} items: {gap}. {_what_would_tell(found)}"


def _what_would_tell(found: Comparison) -> str:
    """More items, or more draws where these are what the error is made of."""
    visible = abs(found.difference) / (normal() + normal(2 * (1 - POWER)))  # an error that shows it four times in five
    if visible <= found.of_draws:
        draws = math.ceil(found.draws * found.of_draws**2 / (visible**2 / 2))
        return f"If that is the true difference, some {draws:,} draws of shots would tell; more items alone would not"
    needed = math.ceil(found.count * found.of_items**2 / (visible**2 - found.of_draws**2))
    return f"If that is the true difference, about {max(needed, found.count + 1):,} items would tell"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
