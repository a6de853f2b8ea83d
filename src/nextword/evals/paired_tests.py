"""Paired tests and intervals of two configurations, and tests of permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base.distributions import binomial_cdf, chi_squared_tail, student_cdf
from .statistics import LEVEL, Errors, clustered_error, errors_of, is_binary, is_share, normal, spread

_SAMPLES = 20_000  # for a permutation test with too many permutations to enumerate
MCNEMAR = "McNemar's exact test"


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the same items: second minus first. `p` is that of `test`, uncorrected."""

    difference: float
    standard_error: float  # paired; over items and seeds
    low: float  # of the interval; its kind is `interval`
    high: float
    p: float
    test: str
    interval: str
    level: float  # 1 - coverage of the interval, which contains 0 unless p is below it
    changed_share: float  # share of items whose score differs
    better: int  # items that scored higher the second time
    worse: int
    count: int
    seeds: int
    shares: bool  # both scores lie in [0, 1]
    errors: Errors  # components of `standard_error`


def compare(
    after: np.ndarray, before: np.ndarray, groups: Sequence[str] | None = None, level: float = LEVEL
) -> Comparison:
    """Compare scores (seeds, permutations, items), or (items,), item by item: what they share cancels (eq. 7).

    One side may have a single seed (no shots) against several. One seed of 0/1 scores: McNemar's exact test and the
    interval of Agresti & Min (2005); of others: a permutation test that swaps each pair, and Student's interval. With
    `groups` or several seeds: Student's t on the whole error. Test and interval agree at `level`; differences of
    shares lie in [-1, 1].
    """
    gaps = _cube(after) - _cube(before)  # (seeds, permutations, items)
    bounded = is_share(after) and is_share(before)
    mean_gaps, count = gaps.mean((0, 1)), gaps.shape[2]
    several = gaps.shape[0] * gaps.shape[1] > 1
    own = spread(gaps) if several else None
    errors = errors_of(count, *_paired_error(mean_gaps, groups, bounded), own, gaps.shape)
    mean, (better, worse) = float(mean_gaps.mean()), (int((mean_gaps > 0).sum()), int((mean_gaps < 0).sum()))
    low, high, interval = mean - errors.half(level), mean + errors.half(level), "Student's t"
    if groups is not None or several:
        p, test = _student_p(mean, errors), "Student's t" + (", clustered" if groups is not None else "")
    elif is_binary(after) and is_binary(before):
        p, test = mcnemar(better, worse), MCNEMAR
        low, high, interval = *agresti_min(better, worse, count, level), "Agresti & Min 2005"
    else:
        p, test = permutation(mean_gaps), "paired permutation test"
    low, high = _agreeing(low, high, mean, p < level)
    if bounded:
        low, high = max(-1.0, low), min(1.0, high)
    return Comparison(
        mean, errors.total, low, high, p, test, interval, level, float((gaps != 0).mean()), better, worse, count,
        gaps.shape[0], bounded, errors,
    )  # fmt: skip


def _cube(scores: np.ndarray) -> np.ndarray:
    return scores if scores.ndim == 3 else scores[None, None]


def _paired_error(gaps: np.ndarray, groups: Sequence[str] | None, bounded: bool) -> tuple[float, float]:
    """Standard error of the mean gap over items, and its degrees of freedom.

    If all gaps of shares are equal, other items might still differ: the error is then that of Agresti & Min for no
    change, 1 / (n + 2), with groups instead of items.
    """
    size: float
    if groups is not None:
        error, size = clustered_error(gaps, groups)
    elif len(gaps) < 2:
        return float("inf"), 0
    else:
        error, size = float(np.std(gaps, ddof=1) / len(gaps) ** 0.5), len(gaps)
    return (1 / (size + 2) if bounded and error == 0 else error), size - 1


def _agreeing(low: float, high: float, mean: float, significant: bool) -> tuple[float, float]:
    """The interval, adjusted to contain 0 unless the difference is significant."""
    if not significant:
        return min(low, 0.0), max(high, 0.0)
    return (max(low, 0.0), high) if mean > 0 else (low, min(high, 0.0))


def _student_p(mean: float, errors: Errors) -> float:
    if errors.total == 0 or errors.freedom <= 0:
        return 1.0 if mean == 0 or errors.freedom <= 0 else 0.0
    return 2 * student_cdf(-abs(mean) / errors.total, errors.freedom)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p for `better` and `worse` under a fair coin (McNemar 1947)."""
    return min(1.0, 2 * binomial_cdf(min(better, worse), better + worse, 0.5))


def agresti_min(better: int, worse: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a difference of paired shares, half an item added to each of the four cells (Agresti & Min 2005,
    Statistics in Medicine 24:729): it has a width even if nothing changed. 0 and 0 of 100 give -.0192 to .0192.
    """
    size, difference = count + 2, better - worse
    error = (better + worse + 1 - difference**2 / size) ** 0.5
    return (difference - normal(level) * error) / size, (difference + normal(level) * error) / size


def permutation(gaps: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean gap under random sign flips of each pair.

    All 2^n flips for at most 15 nonzero gaps, otherwise 20,000 random ones (including the observed one).
    """
    moved = np.abs(gaps[gaps != 0])
    observed = abs(float(gaps.sum()))
    slack = 1e-9 * max(1.0, float(moved.sum()))
    if len(moved) <= 15:
        signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= observed - slack).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(_SAMPLES // 1000):
        signs = 1 - 2 * generator.integers(0, 2, (1000, len(moved)))
        extreme += int((np.abs(signs @ moved) >= observed - slack).sum())
    return (extreme + 1) / (_SAMPLES + 1)


@dataclass(frozen=True)
class PermutationsTest:
    """Test whether the permutations of a seed score equally. `p` is the smallest over seeds, times their number."""

    test: str
    statistics: tuple[float, ...]  # per seed
    freedom: int
    p: float
    sentence: str


def cochran(cube: np.ndarray) -> PermutationsTest | None:
    """Cochran's Q (1950) over the permutations of each seed of scores (seeds, permutations, items).

    None for one permutation, or for scores that are not 0 and 1.

    Q = (k - 1)(k Σ G² - T²) / (k T - Σ L²), G correct answers per permutation, L per item, T in total, k permutations.
    """
    seeds, permutations, _ = cube.shape
    if permutations < 2 or not is_binary(cube):
        return None
    of_permutations, of_items, total = cube.sum(2), cube.sum(1), cube.sum((1, 2))
    changed = permutations * total - (of_items**2).sum(1)
    above = (permutations - 1) * (permutations * (of_permutations**2).sum(1) - total**2)
    statistics = np.where(changed > 0, above / np.where(changed > 0, changed, 1), 0.0)
    p = min(1.0, seeds * chi_squared_tail(float(statistics.max()), permutations - 1))
    several = f", the smallest of {seeds} seeds times {seeds}" if seeds > 1 else ""
    verdict = "score differently" if p < LEVEL else "do not differ significantly"
    sentence = f"the {permutations} permutations {verdict}: Cochran's Q {statistics.max():.2f}, p {p_text(p)}{several}"
    return PermutationsTest("Cochran's Q", tuple(map(float, statistics)), permutations - 1, p, sentence)


def p_text(p: float) -> str:
    """As "0.042" or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
