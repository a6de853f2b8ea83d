"""Learning rates from scans of made-up losses."""

from __future__ import annotations

import math

import pytest

from nextword.scale.rates import Best, best_rate, more, rule, scan


def loss(rate: float, best: float) -> float:
    """A parabola in log rate."""
    return 1.5 + 0.1 * math.log(rate / best) ** 2


@pytest.mark.parametrize("best", [1e-3, 4e-3, 3e-2])
def test_a_scan_goes_on_until_the_best_rate_lies_between_two_others(best: float) -> None:
    losses = {rate: loss(rate, best) for rate in scan("transformer", 100e3, 2048)}
    while (rate := more(losses)) is not None:
        losses[rate] = loss(rate, best)
    found = best_rate(100e3, losses)
    assert found is not None
    assert found.bracketed
    assert found.rate == pytest.approx(best, rel=0.005)
    assert len(losses) <= 7


def test_rates_that_diverge_are_no_optimum() -> None:
    losses = {1e-3: 1.8, 2e-3: 1.7, 4e-3: 1.75, 8e-3: math.inf}
    assert more(losses) is None
    found = best_rate(1e5, losses)
    assert found is not None
    assert 2e-3 < found.rate < 4e-3
    all_lost = dict.fromkeys(scan("lstm", 1e5, 512), math.inf)
    assert more(all_lost) == pytest.approx(min(all_lost) / 2, rel=0.01)  # lower ones may not
    assert best_rate(1e5, all_lost) is None


def test_a_scan_that_never_turns_ends_and_says_so() -> None:
    losses = {rate: 2 - rate for rate in scan("lstm", 1e5, 512)}
    while (rate := more(losses)) is not None:
        losses[rate] = 2 - rate
    found = best_rate(1e5, losses)
    assert found is not None
    assert not found.bracketed
    assert len(losses) == 7


@pytest.mark.parametrize(("large", "power"), [(0.7, -0.5146), (0.9, -0.25), (0.4, -0.5)])
def test_the_power_is_that_of_the_two_optima_within_limits(large: float, power: float) -> None:
    found = rule([Best(1e5, 4e-3, True), Best(2e5, 4e-3 * large, True)])
    assert found is not None
    assert found.power == pytest.approx(max(-0.5, min(-0.25, power)))
    middle = math.sqrt(1e5 * 2e5)
    assert found.at(middle) == pytest.approx(4e-3 * math.sqrt(large), rel=0.01)
    assert found.at(4 * middle) == pytest.approx(found.at(middle) * 4**found.power, rel=0.01)
    assert rule([]) is None
