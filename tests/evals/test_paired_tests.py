"""Paired comparisons against scipy, statsmodels, simulation and published cases (reference/prompting.md)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from test_statistics import simulated

from nextword.evals.paired_tests import agresti_min, cochran, compare, mcnemar, permutation
from nextword.evals.statistics import estimate


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
    # Agresti & Min: (30.5 - 14.5) / 202 and its error by hand
    error = math.sqrt((30.5 + 14.5 - 16**2 / 202) / 202**2)
    assert (found.low, found.high) == pytest.approx((16 / 202 - 1.959964 * error, 16 / 202 + 1.959964 * error))


@given(better=st.integers(0, 60), worse=st.integers(0, 60))
def test_mcnemar_is_the_fair_coin(better: int, worse: int) -> None:
    expected = statsmodels_mcnemar([[0, better], [worse, 0]], exact=True).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)
    assert mcnemar(better, worse) == mcnemar(worse, better)


@pytest.mark.parametrize("count", [9, 60])
def test_the_permutation_test_is_scipy_s(count: int) -> None:
    generator = np.random.default_rng(count)
    gaps = generator.normal(0.12, 1, count)
    oracle = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1)
    assert oracle.pvalue > 0.05  # or else a wrong one could come as near
    assert permutation(gaps) == pytest.approx(oracle.pvalue, abs=0 if count == 9 else 0.012)


def test_scores_that_are_not_0_and_1_are_compared_by_permutation() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(50)
    found = compare(before + 0.2 + 0.05 * generator.normal(size=50), before)
    assert found.test == "paired permutation test"
    assert found.p < 0.001


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_swapping_the_sides_turns_the_sign_and_keeps_p(pairs: list[tuple[bool, bool]]) -> None:
    after, before = np.array(pairs, float).T
    one, other = compare(after, before), compare(before, after)
    assert one.difference == -other.difference
    assert one.p == other.p
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("own", [0.02, 0.3])  # whether what few and many shots change is alike for all items, or not
def test_no_difference_is_called_one_5_times_in_100(seeds: int, own: float) -> None:
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(600):
        gaps = simulated(generator, seeds, 1, 150, own) - 0.6
        before = generator.normal(0.6, 0.3, (1, 1, 150))  # no shots: a single seed
        alarms += compare(before + gaps, before).p < 0.05
    assert alarms / 600 == pytest.approx(0.05, abs=0.03)


def test_what_draws_share_cancels() -> None:
    generator = np.random.default_rng(12)
    before = simulated(generator, 4, 2, 80)
    found = compare(before + 0.1, before)
    assert found.difference == pytest.approx(0.1)
    assert found.errors.of_seeds == pytest.approx(0, abs=1e-9)
    assert found.p < 1e-6


@pytest.mark.parametrize(("better", "worse"), [(0.0, 0.0), (0.01, 0.01), (0.02, 0.0), (0.1, 0.05), (0.3, 0.3)])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_the_interval_of_pairs_holds_even_where_next_to_nothing_changes(
    better: float, worse: float, level: float
) -> None:
    generator = np.random.default_rng(15)
    counts = generator.multinomial(60, [better, worse, 1 - better - worse], 2000)
    bounds = np.array([agresti_min(int(up), int(down), 60, level) for up, down, _ in counts])
    held = (bounds[:, 0] <= better - worse) & (better - worse <= bounds[:, 1])
    assert held.mean() >= 1 - level - 0.015
    assert (bounds[:, 1] - bounds[:, 0]).min() > 0.05


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.sampled_from([0.05, 0.01, 1e-4]))
def test_interval_and_test_agree_and_no_difference_of_shares_is_beyond_1(
    pairs: list[tuple[bool, bool]], level: float
) -> None:
    after, before = np.array(pairs, float).T
    for groups in (None, [str(n // 2) for n in range(len(pairs))]):
        found = compare(after, before, groups, level)
        assert (found.low <= 0 <= found.high) == (found.p >= level) or 0 in (found.low, found.high)
        assert -1 <= found.low <= found.difference <= found.high <= 1


def test_draws_that_all_agree_do_not_make_an_interval_of_no_width() -> None:
    same = np.tile((np.arange(40) % 3 > 0).astype(float), (5, 1, 1))
    found = compare(same, same)
    assert found.low < 0 < found.high
    assert found.p == 1


def test_a_stricter_level_makes_a_wider_interval_and_the_same_p() -> None:
    after, before = paired_case()
    one, three = compare(after, before), compare(after, before, level=0.05 / 3)
    assert three.low < one.low < one.high < three.high
    assert three.p == one.p
    assert three.low <= 0 < one.low  # .0226 is below .05, not below .0167


def test_cochran_s_q_is_that_of_statsmodels_for_each_draw() -> None:
    generator = np.random.default_rng(16)
    own = generator.random(50)
    cube = (generator.random((3, 4, 50)) < np.clip(own + np.linspace(0, 0.25, 4)[:, None], 0, 1)).astype(float)
    found = cochran(cube)
    assert found is not None
    oracle = [cochrans_q(permutations.T) for permutations in cube]
    assert found.statistics == pytest.approx([each.statistic for each in oracle])
    assert found.freedom == 3
    assert found.p == pytest.approx(min(1, 3 * min(each.pvalue for each in oracle)))
    assert "3 seeds" in found.sentence


def test_orders_are_tested_only_where_there_are_several_and_answers_are_right_or_wrong() -> None:
    assert cochran(np.ones((2, 1, 9))) is None
    assert cochran(np.full((1, 2, 9), 0.5)) is None
    same = cochran(np.ones((2, 3, 9)))
    assert same is not None
    assert same.p == 1
