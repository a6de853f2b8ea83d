"""Error bars against scipy, simulation and published cases (Miller 2024, 2411.00640; reference/prompting.md)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from nextword.prompt.errorbars import (
    clustered_error,
    compare,
    estimate,
    holm,
    items_needed,
    majority_accuracy,
    mcnemar,
    permutation,
    spread,
    verdict,
    visible_difference,
    wilson,
)


def paired_case() -> tuple[np.ndarray, np.ndarray]:
    """200 items: both right 110, only the second 30, only the first 14, neither 46."""
    after = np.repeat([1.0, 1.0, 0.0, 0.0], [110, 30, 14, 46])
    before = np.repeat([1.0, 0.0, 1.0, 0.0], [110, 30, 14, 46])
    return after, before


def test_the_paired_case_has_its_published_numbers() -> None:
    after, before = paired_case()
    found = compare(after, before)
    assert found.difference == pytest.approx(0.08)
    assert found.standard_error == pytest.approx(0.032762, abs=1e-6)
    assert found.p == pytest.approx(0.022629, abs=1e-6)
    assert found.test == "McNemar's exact test"
    assert (found.better, found.worse, found.changed_share) == (30, 14, 0.22)
    unpaired = math.hypot(*(estimate(each).standard_error for each in (after, before)))
    assert unpaired == pytest.approx(0.047320, abs=1e-5)
    assert 2 * stats.norm.sf(0.08 / unpaired) == pytest.approx(0.0909, abs=1e-4)
    assert found.difference / found.standard_error == pytest.approx(2.4418, abs=1e-4)
    oracle = statsmodels_mcnemar([[110, 14], [30, 46]], exact=True)
    assert found.p == pytest.approx(oracle.pvalue)
    students = stats.ttest_rel(after, before).confidence_interval()
    assert (found.low, found.high) == pytest.approx((students.low, students.high))


def test_clusters_widen_the_error_as_published() -> None:
    groups = [[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0], [0, 0], [1, 1, 1, 1]]
    scores = np.array([score for group in groups for score in group], float)
    names = [str(n) for n, group in enumerate(groups) for _ in group]
    assert scores.mean() == pytest.approx(0.588235, abs=1e-6)
    assert np.std(scores, ddof=1) / math.sqrt(len(scores)) == pytest.approx(0.123038, abs=1e-6)
    error, clusters = clustered_error(scores, names)
    assert (error, clusters) == (pytest.approx(0.177262, abs=1e-6), 6)
    assert estimate(scores, names).standard_error == pytest.approx(error)
    # the sandwich of a regression on a constant divides each item's own square by n², Miller's by n(n - 1)
    clusters_only = OLS(scores, np.ones(17)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(names, int), "use_correction": False}
    )
    own_squares = ((scores - scores.mean()) ** 2).sum()
    assert error**2 == pytest.approx(clusters_only.cov_params()[0, 0] + own_squares * (1 / (17 * 16) - 1 / 17**2))


def test_power_has_its_published_numbers() -> None:
    assert items_needed(0.08, 0.22) == 262
    assert items_needed(0.03, 0.22) == 1911
    assert visible_difference(200, 0.22) == pytest.approx(0.0929, abs=5e-5)
    assert visible_difference(1000, 0.22) == pytest.approx(0.0416, abs=5e-5)


@given(st.floats(0.005, 0.5), st.floats(0.01, 1), st.floats(0, 1))
def test_more_changed_items_need_more_items_and_these_show_the_difference(
    difference: float, changed: float, more: float
) -> None:
    needed = items_needed(difference, changed)
    assert items_needed(difference, min(1.0, changed + more)) >= needed
    assert items_needed(difference / 2, changed) > needed
    assert visible_difference(math.ceil((1.959964 + 0.841622) ** 2 * changed / difference**2), changed) <= (
        difference + 1e-6
    )


def test_the_items_said_to_be_needed_show_the_difference_four_times_in_five() -> None:
    draw = np.random.default_rng(6)
    count = items_needed(0.08, 0.22)
    gaps = draw.choice([1.0, 0.0, -1.0], (2000, count), p=[0.15, 0.78, 0.07])
    z = gaps.mean(1) / (gaps.std(1, ddof=1) / math.sqrt(count))
    assert (abs(z) > 1.959964).mean() == pytest.approx(0.8, abs=0.03)


def test_wilson_is_scipy_s_and_the_published_interval() -> None:
    assert wilson(17, 20) == pytest.approx((0.6396, 0.9476), abs=5e-5)
    for right, count in ((0, 5), (5, 5), (3, 40), (999, 1000)):
        oracle = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
        assert wilson(right, count) == pytest.approx(proportion_confint(right, count, method="wilson"), abs=1e-12)


@given(better=st.integers(0, 60), worse=st.integers(0, 60))
def test_mcnemar_is_the_fair_coin(better: int, worse: int) -> None:
    expected = statsmodels_mcnemar([[0, better], [worse, 0]], exact=True).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)
    assert mcnemar(better, worse) == mcnemar(worse, better)


@pytest.mark.parametrize("count", [9, 60])
def test_the_permutation_test_is_scipy_s(count: int) -> None:
    draw = np.random.default_rng(count)
    gaps = draw.normal(0.12, 1, count)
    oracle = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1)
    assert oracle.pvalue > 0.05  # or else a wrong one could come as near
    assert permutation(gaps) == pytest.approx(oracle.pvalue, abs=0 if count == 9 else 0.012)


def test_scores_that_are_not_0_and_1_are_compared_by_permutation() -> None:
    draw = np.random.default_rng(0)
    before = draw.random(50)
    found = compare(before + 0.2 + 0.05 * draw.normal(size=50), before)
    assert found.test == "paired permutation test"
    assert found.p < 0.001


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_the_raw_p(ps: list[float]) -> None:
    corrected = holm(ps)
    for raw, one in zip(ps, corrected, strict=True):
        assert raw <= one <= 1
    order = sorted(range(len(ps)), key=lambda n: ps[n])
    assert [corrected[n] for n in order] == sorted(corrected)


def test_holm_s_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    many = [*np.random.default_rng(5).beta(0.3, 3, 40), 0.01, 0.01]
    assert holm(many) == pytest.approx(list(multipletests(many, method="holm")[1]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_swapping_the_sides_turns_the_sign_and_keeps_p(pairs: list[tuple[bool, bool]]) -> None:
    after, before = np.array(pairs, float).T
    one, other = compare(after, before), compare(before, after)
    assert one.difference == -other.difference
    assert one.p == other.p
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    draw = np.random.default_rng(7)
    held = 0
    for _ in range(1500):
        share = draw.uniform(0.05, 0.95)
        found = estimate((draw.random(60) < share).astype(float))
        held += found.low <= share <= found.high
    assert held / 1500 == pytest.approx(0.95, abs=0.02)


def test_clustered_intervals_hold_where_plain_ones_do_not() -> None:
    draw = np.random.default_rng(8)
    names = [str(n) for n in range(40) for _ in range(6)]
    clustered = plain = 0
    for _ in range(800):
        own = draw.beta(2, 2, 40)  # a group's items are right together
        scores = (draw.random((40, 6)) < own[:, None]).astype(float).ravel()
        one, other = estimate(scores, names), estimate(scores)
        clustered += one.low <= 0.5 <= one.high
        plain += other.low <= 0.5 <= other.high
    assert clustered / 800 == pytest.approx(0.95, abs=0.025)
    assert plain / 800 < 0.9


def simulated(
    draw: np.random.Generator, draws: int, orders: int, items: int, own: float = 0.3, by_draw: float = 0.3
) -> np.ndarray:
    """Scores around .6 that vary by .05 between draws and .03 between orders; items by `own`, `by_draw` and .2."""
    return (
        draw.normal(0.6, own, items)
        + draw.normal(0, 0.05, (draws, 1, 1))
        + draw.normal(0, 0.03, (draws, orders, 1))
        + draw.normal(0, by_draw, (draws, 1, items))  # an item that likes the shots of a draw likes them in any order
        + draw.normal(0, 0.2, (draws, orders, items))
    )


def test_spread_finds_what_draws_orders_and_items_vary_by() -> None:
    draw = np.random.default_rng(9)
    found = [spread(simulated(draw, 12, 3, 100)) for _ in range(400)]
    assert np.mean([each.draws**2 for each in found]) == pytest.approx(0.05**2, rel=0.08)
    assert np.mean([each.orders**2 for each in found]) == pytest.approx(0.03**2, rel=0.12)
    assert np.mean([each.items**2 for each in found]) == pytest.approx(
        0.3**2 + 0.3**2 / 12 + 0.2**2 / 36, rel=0.05
    )  # what is left of an item's liking for a draw, too
    assert np.mean([each.of_draws**2 for each in found]) == pytest.approx((0.05**2 + 0.03**2 / 3) / 12, rel=0.1)


@pytest.mark.parametrize(("by_draw", "of_orders"), [(0.3, 0.0), (0.0, 0.1)])
def test_what_items_or_orders_differ_by_is_not_taken_for_draws_that_differ(by_draw: float, of_orders: float) -> None:
    draw = np.random.default_rng(13)
    above = []
    for _ in range(400):
        moved = draw.normal(0, by_draw, (4, 1, 50)) + draw.normal(0, of_orders, (4, 3, 1))
        above.append(spread(moved + draw.normal(0, 0.2, (4, 3, 50))).draws > 0)
    assert np.mean(above) < 0.55  # without a difference its estimate is as often below 0 as above


@pytest.mark.parametrize("draws", [3, 5])
def test_an_interval_over_draws_holds_for_other_draws_too(draws: int) -> None:
    draw = np.random.default_rng(10)
    held = alone = 0
    for _ in range(1000):
        cube = simulated(draw, draws, 2, 150)
        one = estimate(cube.mean((0, 1)))
        wide = spread(cube).widened(one)
        held += wide.low <= 0.6 <= wide.high
        alone += one.low <= 0.6 <= one.high
    assert held / 1000 == pytest.approx(0.95, abs=0.03)
    assert alone / 1000 < 0.9


def test_an_interval_over_draws_of_few_groups_holds() -> None:
    draw = np.random.default_rng(14)
    names = [str(n) for n in range(12) for _ in range(10)]
    held = alarms = 0
    for _ in range(600):
        cube = simulated(draw, 5, 1, 120, 0.2) + np.repeat(draw.normal(0, 0.3, 12), 10)
        wide = spread(cube).widened(estimate(cube.mean((0, 1)), names))
        held += wide.low <= 0.6 <= wide.high
        alarms += compare(cube, np.full(120, 0.6), names).p < 0.05
    assert held / 600 == pytest.approx(0.95, abs=0.03)
    assert alarms / 600 == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("draws", [3, 5])
@pytest.mark.parametrize("own", [0.02, 0.3])  # whether what few and many shots change is alike for all items, or not
def test_no_difference_is_called_one_5_times_in_100(draws: int, own: float) -> None:
    draw = np.random.default_rng(11)
    alarms = 0
    for _ in range(600):
        gaps = simulated(draw, draws, 1, 150, own) - 0.6
        before = draw.normal(0.6, 0.3, (1, 1, 150))  # no shots: a single draw
        alarms += compare(before + gaps, before).p < 0.05
    assert alarms / 600 == pytest.approx(0.05, abs=0.03)


def test_what_draws_share_cancels() -> None:
    draw = np.random.default_rng(12)
    before = simulated(draw, 4, 2, 80)
    found = compare(before + 0.1, before)
    assert found.difference == pytest.approx(0.1)
    assert found.of_draws == pytest.approx(0, abs=1e-9)
    assert found.p < 1e-6


def test_the_verdict_says_what_would_tell() -> None:
    after, before = paired_case()
    found = compare(after, before)
    assert verdict("four", "none", found, 0.02).startswith("four is better than none: +0.080")
    unsure = verdict("four", "none", found, 0.06)
    assert "cannot be told at 200 items" in unsure
    assert "about 26" in unsure  # 262, by the published formula
    same = compare(before, before)
    assert "scored the same" in verdict("four", "none", same, 1.0)
    assert "is worse than" in verdict("none", "four", compare(before, after), 0.02)
    noisy = np.stack([before[None], after[None], before[None] * 0.5, after[None] * 0.9])
    assert "draws of shots would tell" in verdict("four", "none", compare(noisy, before[None, None]), 0.5)


def test_the_majority_is_that_of_what_was_seen() -> None:
    assert majority_accuracy(["a", "a", "b"], ["a", "b", "b", "b"]) == 0.25
