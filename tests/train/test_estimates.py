"""The error of a mean over seeds and text: what it says holds in simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nextword.train.estimates import Estimate, crossed, in_stretches

STUDIES = 800


def simulated(seed: float, text: float, both: float, mean: float = 0.0, draw: int = 0) -> list[Estimate]:
    """Estimates of studies of 3 seeds and 16 stretches with these standard deviations."""
    generator = np.random.default_rng(draw)
    normal = generator.standard_normal
    return [
        crossed(mean + seed * normal((3, 1)) + text * normal((1, 16)) + both * normal((3, 16))) for _ in range(STUDIES)
    ]


@pytest.mark.parametrize(
    ("seed", "text", "both"), [(0, 0, 1), (0, 1, 0.1), (1, 0, 0.1), (0.3, 1, 1), (1, 1, 0.5), (0.2, 0.2, 1)]
)
def test_the_interval_holds_the_true_mean_95_times_in_100(seed: float, text: float, both: float) -> None:
    held = sum(each.low <= 0 <= each.high for each in simulated(seed, text, both)) / STUDIES
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / STUDIES)


def test_seeds_that_disagree_widen_the_interval_however_much_text_there_is() -> None:
    values = np.tile([[0.0], [1.0], [2.0]], (1, 1000))
    found = crossed(values)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.freedom == pytest.approx(2)
    assert found.margin == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # Student's t of two degrees


def test_one_seed_has_the_error_of_its_text() -> None:
    found = crossed(np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert found.error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert found.freedom == 3


def test_values_that_never_differ_have_no_error() -> None:
    assert crossed(np.ones((3, 5))).margin == 0
    assert math.isinf(crossed(np.ones((1, 1))).margin)


def test_a_gain_as_large_as_the_detectable_one_is_seen_four_times_in_five() -> None:
    none = simulated(0.0, 1.0, 0.3)
    gain = float(np.mean([each.detectable() for each in none]))
    seen = np.mean([each.low > 0 for each in simulated(0.0, 1.0, 0.3, mean=gain, draw=1)])
    assert 0.75 < seen < 0.9


def test_stretches_keep_the_texts_order() -> None:
    assert in_stretches(np.arange(10.0)[None], 2).tolist() == [[2.0, 7.0]]
    assert in_stretches(np.arange(3.0)[None], 32).tolist() == [[0.0, 1.0, 2.0]]
