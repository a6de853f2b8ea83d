"""The shuffled order: a bijection for every count and key, and as good as a random one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from nextword.data.order import permute


@given(count=st.integers(1, 5000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 99))
def test_every_place_is_taken_once(count: int, seed: int, epoch: int) -> None:
    places = permute(np.arange(count), count, (seed, epoch))
    assert np.array_equal(np.sort(places), np.arange(count))


@given(count=st.integers(10**6, 2**62), key=st.integers(), data=st.data())
def test_places_of_a_huge_order_are_distinct_and_inside(count: int, key: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1000))
    places = permute(np.arange(start, start + 1000), count, key)
    assert len(np.unique(places)) == 1000
    assert places.min() >= 0
    assert places.max() < count


@given(count=st.integers(1, 3000), data=st.data())
def test_asking_for_some_places_gives_what_asking_for_all_gives(count: int, data: st.DataObject) -> None:
    asked = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(permute(asked, count, "key"), permute(np.arange(count), count, "key")[asked])


def test_shape_is_kept_and_the_argument_is_not_written_to() -> None:
    asked = np.arange(6).reshape(2, 3)
    assert permute(asked, 10**9, 1).shape == (2, 3)
    assert np.array_equal(asked, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_all_orders_of_few_things_are_equally_likely(count: int) -> None:
    draws, orders = 12_000, math.factorial(count)
    seen = Counter(tuple(permute(np.arange(count), count, (5, epoch)).tolist()) for epoch in range(draws))
    expected = draws / orders
    statistic = sum((number - expected) ** 2 / expected for number in seen.values())
    statistic += (orders - len(seen)) * expected
    assert statistic < chi2.ppf(0.9999, orders - 1)


@pytest.mark.parametrize("count", [1500, 4097, 70_001])
def test_where_things_land_does_not_depend_on_where_they_were(count: int) -> None:
    cells = np.zeros((8, 8))
    for epoch in range(30):
        index = np.arange(count)
        np.add.at(cells, (index * 8 // count, permute(index, count, (1, epoch)) * 8 // count), 1)
    expected = cells.sum() / 64
    # A sample without replacement varies less than chi-squared says, so only the upper end is a fault.
    assert ((cells - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 49)


def test_neighbours_are_parted_as_in_a_random_order() -> None:
    count = 50_000
    places = permute(np.arange(count), count, (0, 0))
    following = np.abs(np.diff(places)) == 1  # a random order has 2 such pairs on average
    assert following.sum() <= 12
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 5 / math.sqrt(count)


def test_fixed_points_are_as_many_as_in_random_orders() -> None:
    """A random permutation has one on average, and their number over 400 orders is Poisson with mean 400."""
    fixed = sum(int((permute(np.arange(2000), 2000, (3, e)) == np.arange(2000)).sum()) for e in range(400))
    assert abs(fixed - 400) < 5 * math.sqrt(400)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = permute(np.arange(1000), 1000, (0, 0))
    for key in ((0, 1), (1, 0)):
        assert (permute(np.arange(1000), 1000, key) == first).mean() < 0.02


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permute(np.arange(8), 8, (1337, 0)).tolist() == [3, 0, 5, 1, 7, 2, 6, 4]
    assert permute([0, 1, 2], 10**12, (1337, 0)).tolist() == [161853662062, 435670124105, 869434492665]


@pytest.mark.parametrize(("index", "count"), [(5, 5), (-1, 5)])
def test_an_index_outside_is_refused(index: int, count: int) -> None:
    with pytest.raises(IndexError):
        permute(index, count, 0)
