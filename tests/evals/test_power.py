"""What detects a difference, against simulated tests of that very size and Miller's published cases (2411.00640)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nextword.evals.paired_tests import compare, mcnemar
from nextword.evals.power import (
    Power,
    mcnemar_power,
    needed,
    planned_power,
    power_of,
    power_sentence,
    visible,
    what_is_needed,
)
from nextword.evals.statistics import Errors


def over_draws(items: int, seeds: int, between: float, own: float, by_seed: float) -> Errors:
    """The errors of a mean of `items` gaps that vary by these standard deviations, over `seeds`."""
    of_seeds = between / math.sqrt(seeds)
    noise = by_seed**2 / items / seeds
    error = math.sqrt((own**2 + by_seed**2 / seeds) / items)
    return Errors(items, error, items - 1, seeds, of_seeds, math.sqrt(of_seeds**2 + noise), seeds - 1)


@pytest.mark.parametrize(("difference", "changed"), [(0.08, 0.22), (0.03, 0.22)])
def test_the_exact_test_takes_a_few_more_items_than_the_normal_approximation_as_published(
    difference: float, changed: float
) -> None:
    published = {0.08: 262, 0.03: 1911}[difference]
    found = needed(Power(Errors(100, 0, 99), changed=changed), difference)
    assert found.seeds is None
    assert published < found.items < 1.1 * published
    assert visible(Power(Errors(200, 0, 199), changed=0.22)) == pytest.approx(0.0929, abs=0.004)


def test_the_power_of_the_exact_test_is_counted_out() -> None:
    count, difference, changed = 12, 0.3, 0.6
    told = 0.0
    for better in range(count + 1):
        for worse in range(count + 1 - better):
            chance = stats.multinomial.pmf(
                [better, worse, count - better - worse], count, [0.45, 0.15, 0.4]
            )  # .45 + .15 change, .45 - .15 is the difference
            told += chance * (mcnemar(better, worse) < 0.05 and better > worse)
    assert mcnemar_power(count, difference, changed) == pytest.approx(told)


@pytest.mark.parametrize(
    ("difference", "changed", "level"), [(0.08, 0.22, 0.05), (0.1, 0.15, 0.05 / 3), (0.3, 0.3, 0.05)]
)
def test_the_items_said_to_be_needed_tell_pairs_four_times_in_five(
    difference: float, changed: float, level: float
) -> None:
    generator = np.random.default_rng(6)
    count = needed(Power(Errors(100, 0, 99), level, changed), difference).items
    up, down = (changed + difference) / 2, (changed - difference) / 2
    counts, often = np.unique(generator.multinomial(count, [up, down, 1 - changed], 2000), axis=0, return_counts=True)
    told = [mcnemar(int(better), int(worse)) < level and better > worse for better, worse, _ in counts]
    assert (often * told).sum() / 2000 == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("between", "level"), [(0.02, 0.05), (0.04, 0.05), (0.04, 0.0125)])
def test_the_items_said_to_be_needed_tell_draws_four_times_in_five(between: float, level: float) -> None:
    generator, own, by_seed = np.random.default_rng(7), 0.4, 0.3
    count = needed(Power(over_draws(100, 5, between, own, by_seed), level), 0.1).items
    told = 0
    for _ in range(300):
        gaps = 0.1 + generator.normal(0, between, (5, 1, 1)) + generator.normal(0, own, count)
        gaps = gaps + generator.normal(0, by_seed, (5, 1, count))
        found = compare(gaps, np.zeros_like(gaps), level=level)
        told += found.p < level and found.difference > 0
    assert 0.72 < told / 300 < 0.88


def test_the_draws_said_to_be_needed_tell_four_times_in_five_where_more_items_would_not() -> None:
    generator, between = np.random.default_rng(8), 0.08
    power = Power(over_draws(300, 3, between, 0.3, 0.3))
    found = needed(power, 0.1)
    assert found.items is None
    assert "more items alone would not help" in what_is_needed(power, 0.1)
    told = 0
    for _ in range(300):
        gaps = 0.1 + generator.normal(0, between, (found.seeds, 1, 1)) + generator.normal(0, 0.3, 300)
        gaps = gaps + generator.normal(0, 0.3, (found.seeds, 1, 300))
        told += compare(gaps, np.zeros_like(gaps)).p < 0.05
    assert told / 300 == pytest.approx(0.8, abs=0.08)


def test_the_items_said_to_be_needed_tell_groups_four_times_in_five() -> None:
    generator, size, own, shared = np.random.default_rng(9), 5, 0.4, 0.3
    error = math.sqrt((shared**2 + own**2 / size) / 30)
    found = needed(Power(Errors(150, error, 29)), 0.1)
    groups = math.ceil(found.items / size)
    assert groups > 80  # as many independent items would show it at a third of that
    names = [str(n) for n in range(groups) for _ in range(size)]
    told = 0
    for _ in range(300):
        gaps = 0.1 + np.repeat(generator.normal(0, shared, groups), size) + generator.normal(0, own, groups * size)
        told += compare(gaps, np.zeros_like(gaps), names).p < 0.05
    assert told / 300 == pytest.approx(0.8, abs=0.07)


@given(
    st.integers(10, 400), st.floats(0.005, 0.1), st.integers(1, 8), st.floats(0, 0.06), st.floats(0.001, 0.4),
    st.sampled_from([0.05, 0.01]),
)  # fmt: skip
def test_what_these_items_tell_is_never_said_to_take_more(
    count: int, error: float, seeds: int, of_seeds: float, difference: float, level: float
) -> None:
    moved = of_seeds if seeds > 1 else 0.0
    power = Power(Errors(count, error, count - 1, seeds, moved, 1.2 * moved, seeds - 1), level)
    found = needed(power, difference)
    smallest = visible(power)
    if smallest is not None and smallest <= difference:
        assert found.items is not None
        assert found.items <= count
    else:
        assert found.items is None or found.items > count
    assert ("more items alone would not help" in power_sentence(power, difference)) <= (found.items is None)


@pytest.mark.parametrize("count", [30, 60, 200])
def test_a_difference_that_is_not_told_always_takes_more_items_than_there_were(count: int) -> None:
    for better in range(0, 16, 5):
        for worse in range(0, better, 2):
            after = np.repeat([1.0, 0.0, 1.0], [better, worse, count - better - worse])
            before = np.repeat([0.0, 1.0, 1.0], [better, worse, count - better - worse])
            for level in (0.05, 0.01):
                found = compare(after, before, level=level)
                if found.p >= level:
                    assert needed(power_of(found), found.difference).items > count


def test_a_plan_states_its_guesses_and_its_level() -> None:
    plain, several = planned_power(0.15, 150, None, 1, 1), planned_power(0.15, 150, None, 5, 3)
    assert plain.items is not None
    assert plain.items < several.items
    assert several.level == pytest.approx(0.05 / 3)
    assert "20% of the items change" in plain.sentence
    assert "standard deviation of 0.05 between few-shot seeds" in several.sentence
    assert "seeds" not in plain.sentence
    assert "conclusions are about this one set of shots" in planned_power(0.1, 150, None, 1, 1, one_set=True).sentence
    assert planned_power(0.1, 5, None, 1, 1).visible is None  # 5 changes, all one way, have p .0625
    grouped = planned_power(0.15, 150, 30, 1, 1)
    assert grouped.items > 4 * plain.items
    assert "30 groups" in grouped.sentence
