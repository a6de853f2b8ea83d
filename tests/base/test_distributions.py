"""Tails and quantiles against scipy."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from nextword.base import distributions

shares = st.floats(1e-6, 1 - 1e-6)
freedoms = st.floats(0.5, 1e5)


@given(shares)
def test_normal_quantiles_are_scipy_s(share):
    assert distributions.normal_quantile(share) == pytest.approx(special.ndtri(share), rel=1e-12, abs=1e-13)


@given(st.floats(-50, 50), freedoms)
@example(0.0, 3.0)
@example(1.9, math.inf)
def test_student_s_distribution_is_scipy_s(t, freedom):
    assert distributions.student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-8, abs=1e-14)


@given(shares, freedoms)
@example(0.975, math.inf)
@example(0.5, 4.0)
def test_student_s_quantiles_are_scipy_s(share, freedom):
    assert distributions.student_quantile(share, freedom) == pytest.approx(
        stats.t.ppf(share, freedom), rel=1e-7, abs=1e-12
    )


@given(st.data(), st.integers(1, 100_000), st.floats(0, 1))
def test_binomial_probabilities_are_scipy_s(data, trials, chance):
    successes = data.draw(st.integers(0, trials))
    assert distributions.binomial_cdf(successes, trials, chance) == pytest.approx(
        stats.binom.cdf(successes, trials, chance), rel=1e-7, abs=1e-12
    )
    assert distributions.binomial_pmf(successes, trials, chance) == pytest.approx(
        stats.binom.pmf(successes, trials, chance), rel=1e-7, abs=1e-12
    )


def test_fewer_than_no_successes_cannot_be():
    assert distributions.binomial_cdf(-1, 10, 0.5) == 0


@given(st.floats(0, 500), st.integers(1, 200))
def test_chi_squared_tails_are_scipy_s(value, freedom):
    assert distributions.chi_squared_tail(value, freedom) == pytest.approx(
        stats.chi2.sf(value, freedom), rel=1e-9, abs=1e-14
    )


@given(st.integers(0, 20), st.integers(1, 20), st.lists(st.booleans(), max_size=200), st.floats(0, 0.9))
def test_a_tail_followed_step_by_step_is_the_one_computed_afresh(successes, more, steps, chance):
    tail = distributions.BinomialTail(successes, successes + more, chance)
    for step in steps:
        tail.add_trial()
        if step:
            tail.add_success()
    expected = stats.binom.cdf(tail.successes, tail.trials, chance)
    assert tail.below == pytest.approx(expected, rel=1e-9, abs=1e-12)
