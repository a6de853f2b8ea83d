"""Error bars against scipy, simulation and published cases (Miller 2024, 2411.00640; reference/prompting.md)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit
from statsmodels.api import OLS
from statsmodels.stats.proportion import proportion_confint

from nextword.evals.paired_tests import compare
from nextword.evals.statistics import (
    Errors,
    clustered_error,
    estimate,
    majority_accuracy,
    spread,
    wilson,
    with_interval,
)


def test_clusters_widen_the_error_as_published() -> None:
    groups = [[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0], [0, 0], [1, 1, 1, 1]]
    scores = np.array([score for group in groups for score in group], float)
    names = [str(n) for n, group in enumerate(groups) for _ in group]
    assert scores.mean() == pytest.approx(0.588235, abs=1e-6)
    assert np.std(scores, ddof=1) / math.sqrt(len(scores)) == pytest.approx(0.123038, abs=1e-6)
    error, clusters = clustered_error(scores, names)
    assert error == pytest.approx(0.177262, abs=1e-6)
    assert clusters == pytest.approx(17**2 / (3 * 9 + 2 * 4 + 16))  # Kish's effective number of 6 unequal ones
    assert clustered_error(scores[:9], names[:9])[1] == 3
    assert estimate(scores, names).standard_error == pytest.approx(error)
    # the sandwich of a regression on a constant divides each item's own square by n², Miller's by n(n - 1)
    clusters_only = OLS(scores, np.ones(17)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(names, int), "use_correction": False}
    )
    own_squares = ((scores - scores.mean()) ** 2).sum()
    assert error**2 == pytest.approx(clusters_only.cov_params()[0, 0] + own_squares * (1 / (17 * 16) - 1 / 17**2))


def test_wilson_is_scipy_s_and_the_published_interval() -> None:
    assert wilson(17, 20) == pytest.approx((0.6396, 0.9476), abs=5e-5)
    for right, count in ((0, 5), (5, 5), (3, 40), (999, 1000)):
        oracle = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
        assert wilson(right, count) == pytest.approx(proportion_confint(right, count, method="wilson"), abs=1e-12)
    assert (wilson(60, 60)[1], wilson(0, 60)[0]) == (1, 0)  # not a rounding error below 1: it may be required


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(1500):
        share = generator.uniform(0.05, 0.95)
        found = estimate((generator.random(60) < share).astype(float))
        held += found.low <= share <= found.high
    assert held / 1500 == pytest.approx(0.95, abs=0.02)


def test_clustered_intervals_hold_where_plain_ones_do_not() -> None:
    generator = np.random.default_rng(8)
    names = [str(n) for n in range(40) for _ in range(6)]
    clustered = plain = 0
    for _ in range(800):
        own = generator.beta(2, 2, 40)  # a group's items are right together
        scores = (generator.random((40, 6)) < own[:, None]).astype(float).ravel()
        one, other = estimate(scores, names), estimate(scores)
        clustered += one.low <= 0.5 <= one.high
        plain += other.low <= 0.5 <= other.high
    assert clustered / 800 == pytest.approx(0.95, abs=0.025)
    assert plain / 800 < 0.9


def simulated(
    generator: np.random.Generator, seeds: int, permutations: int, items: int, own: float = 0.3, by_seed: float = 0.3
) -> np.ndarray:
    """Scores around .6 that vary by .05 between seeds, .03 between permutations; items by `own`, `by_seed`, .2."""
    return (
        generator.normal(0.6, own, items)
        + generator.normal(0, 0.05, (seeds, 1, 1))
        + generator.normal(0, 0.03, (seeds, permutations, 1))
        + generator.normal(0, by_seed, (seeds, 1, items))  # an item that likes a seed's shots likes them in any order
        + generator.normal(0, 0.2, (seeds, permutations, items))
    )


def test_spread_finds_what_draws_orders_and_items_vary_by() -> None:
    generator = np.random.default_rng(9)
    found = [spread(simulated(generator, 12, 3, 100)) for _ in range(400)]
    assert np.mean([each.seeds**2 for each in found]) == pytest.approx(0.05**2, rel=0.08)
    assert np.mean([each.permutations**2 for each in found]) == pytest.approx(0.03**2, rel=0.12)
    assert np.mean([each.items**2 for each in found]) == pytest.approx(
        0.3**2 + 0.3**2 / 12 + 0.2**2 / 36, rel=0.05
    )  # what is left of an item's liking for a seed, too
    assert np.mean([each.of_seeds**2 for each in found]) == pytest.approx((0.05**2 + 0.03**2 / 3) / 12, rel=0.1)


@pytest.mark.parametrize(("by_seed", "of_permutations"), [(0.3, 0.0), (0.0, 0.1)])
def test_what_items_or_orders_differ_by_is_not_taken_for_draws_that_differ(
    by_seed: float, of_permutations: float
) -> None:
    generator = np.random.default_rng(13)
    above = []
    for _ in range(400):
        moved = generator.normal(0, by_seed, (4, 1, 50)) + generator.normal(0, of_permutations, (4, 3, 1))
        above.append(spread(moved + generator.normal(0, 0.2, (4, 3, 50))).seeds > 0)
    assert np.mean(above) < 0.55  # without a difference its estimate is as often below 0 as above


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_over_draws_holds_for_other_draws_too(seeds: int) -> None:
    generator = np.random.default_rng(10)
    held = alone = 0
    for _ in range(1000):
        cube = simulated(generator, seeds, 2, 150)
        one = estimate(cube.mean((0, 1)))
        wide = spread(cube).widened(one)
        held += wide.low <= 0.6 <= wide.high
        alone += one.low <= 0.6 <= one.high
    assert held / 1000 == pytest.approx(0.95, abs=0.03)
    assert alone / 1000 < 0.9


def test_an_interval_over_draws_of_few_groups_holds() -> None:
    generator = np.random.default_rng(14)
    names = [str(n) for n in range(12) for _ in range(10)]
    held = alarms = 0
    for _ in range(600):
        cube = simulated(generator, 5, 1, 120, 0.2) + np.repeat(generator.normal(0, 0.3, 12), 10)
        wide = spread(cube).widened(estimate(cube.mean((0, 1)), names))
        held += wide.low <= 0.6 <= wide.high
        alarms += compare(cube, np.full(120, 0.6), names).p < 0.05
    assert held / 600 == pytest.approx(0.95, abs=0.03)
    assert alarms / 600 == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("share", [0.7, 0.95])
def test_intervals_of_shares_hold_near_their_ends_too_over_draws(share: float) -> None:
    """Also that what they show to lie above a number, which `--at-least` calls met, seldom lies below it."""
    generator, runs, between = np.random.default_rng(17), 600, 1.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    middle = brentq(lambda m: expit(m + nodes * np.hypot(1, between)) @ weights / weights.sum() - share, 0, 9)
    chances = expit(middle + generator.normal(0, 1, (runs, 1, 1, 60)) + generator.normal(0, between, (runs, 5, 1, 1)))
    cubes = (generator.random(chances.shape) < chances).astype(float)
    found = [spread(cube).widened(estimate(cube.mean((0, 1))), True) for cube in cubes]
    above = np.mean([each.low > share for each in found])
    assert above < 0.06  # .1 with Student's interval of the share itself, at .95
    assert above + np.mean([each.high < share for each in found]) < 0.075
    assert all(0 <= each.low <= each.value <= each.high <= 1 for each in found)


def test_groups_of_unequal_sizes_hold_as_equal_ones_do() -> None:
    generator, sizes = np.random.default_rng(18), np.array([60, 40, 30, 20, 10, 10, 10, 5, 5, 5, 5])
    names = np.repeat(np.arange(len(sizes)), sizes).astype(str)
    own = generator.beta(3, 1, (500, len(sizes)))  # mean .75; a group's items are right together
    scores = (generator.random((500, sizes.sum())) < own.repeat(sizes, axis=1)).astype(float)
    found = [estimate(each, names) for each in scores]
    assert np.mean([each.low <= 0.75 <= each.high for each in found]) > 0.92


def test_groups_that_are_all_right_do_not_prove_that_all_others_would_be() -> None:
    found = estimate(np.ones(30), [str(n // 5) for n in range(30)])
    assert (found.low, found.high) == pytest.approx(wilson(6, 6))


def test_three_items_or_one_group_have_no_more_freedom_than_that_however_many_the_draws() -> None:
    assert Errors(3, 0.2, 2, 5, 0.0, 0.01, 4).freedom == pytest.approx(2, abs=0.01)
    assert Errors(40, 0.0, 0, 5, 0.1, 0.1, 4).freedom == 0  # one group says nothing of others
    assert Errors(400, 0.01, 399, 5, 0.1, 0.1, 4).freedom == pytest.approx(4, abs=0.2)


def test_the_majority_is_that_of_what_was_seen() -> None:
    assert majority_accuracy(["a", "a", "b"], ["a", "b", "b", "b"]) == 0.25


def test_draws_that_answer_the_opposite_of_each_other_do_not_prove_their_mean() -> None:
    """Two seeds that each give one label always: every item is right in one of them, and .4 and .6 are far apart."""
    right = np.array([1.0] * 8 + [0.0] * 12)
    cube = np.array([[right], [1 - right]])
    found = spread(cube).widened(estimate(cube.mean((0, 1))))
    assert found.standard_error == pytest.approx(0.1)  # of seeds alone: sd .1414 over the root of 2
    assert found.low < 0.1
    assert found.high > 0.9


def test_a_difference_that_rounds_to_zero_has_no_minus_sign() -> None:
    assert with_interval(-1e-9, -0.25, 0.25, "+") == "+0.000 [-0.250, +0.250]"
