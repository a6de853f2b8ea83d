"""The best of several ways of asking: what is said of it must hold for the way that was chosen, in simulations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from nextword.evals.choosing import choose
from nextword.evals.result_rows import ResultRow
from nextword.evals.statistics import estimate


def line(cube: np.ndarray, way: int = 0, one_set: bool = False) -> ResultRow:
    every = estimate(np.ones(2))  # which chooses nothing
    return ResultRow("model", "form", way, "plain", every, 0, 1, None, scores=cube, one_set=one_set)  # type: ignore[arg-type]


@pytest.mark.parametrize(("between", "least"), [(0.5, 0.93), (1.0, 0.92)])
def test_the_interval_of_the_best_holds_for_other_items_and_other_draws(between: float, least: float) -> None:
    generator, held, runs = np.random.default_rng(3), 0, 500
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    true = float(expit(0.5 + nodes * np.hypot(1, between)) @ weights / weights.sum())  # of every way
    for run in range(runs):
        own = generator.normal(0, 1, 120)  # logits of how easy an item is
        chances = expit(0.5 + own + generator.normal(0, between, (5, 5, 1, 1)))
        cubes = (generator.random(chances.shape) < chances).astype(float)  # ways, seeds, permutations, items
        found = choose([line(cube, way) for way, cube in enumerate(cubes)], list(map(str, range(120))), run)
        assert found is not None
        held += found.held_out.low <= true <= found.held_out.high
    assert held / runs >= least


def test_no_draw_and_no_group_both_chooses_and_measures() -> None:
    groups = [str(n // 4) for n in range(48)]
    marks = np.arange(5 * 48).reshape(5, 1, 48) / 240  # every score its own
    found = choose([line(marks, 1), line(marks - 1, 2)], groups, 0)
    assert found is not None
    assert (found.seeds_chosen_on, found.seeds) == (1, 4)
    assert found.held_out.count == 24
    assert found.optimistic == pytest.approx(marks.mean())
    assert "1 of its 5 few-shot seeds" in found.sentence


def test_a_choice_from_few_draws_says_what_its_interval_does_not_cover() -> None:
    generator, groups = np.random.default_rng(4), list(map(str, range(40)))

    def best(seeds: int, one_set: bool = False) -> str:
        good, bad = (
            (generator.random((seeds, 1, 40)) < 0.9).astype(float),
            np.zeros((seeds, 1, 40)),
        )
        found = choose([line(good, 4, one_set), line(bad, 8, one_set)], groups, 0)
        assert found is not None
        return found.sentence

    assert "not other few-shot seeds: use --fewshot-seeds 5 or more" in best(2)
    assert "over 2 seeds may be too narrow" in best(3)
    assert "use --fewshot-seeds" not in best(5)
    assert "best of 2: this one set of 4 shots" in best(1, one_set=True)
    assert "holds for this set of shots only" in best(1, one_set=True)


def test_a_baseline_that_nobody_asked_for_is_not_the_best() -> None:
    good, bad = np.ones((1, 1, 40)), np.zeros((1, 1, 40))
    groups = list(map(str, range(40)))
    assert choose([line(bad, 0), replace(line(good, 0), variant="contextual", baseline=True)], groups, 0) is None
    found = choose([line(bad, 0), replace(line(good, 0), variant="contextual")], groups, 0)
    assert found is not None
    assert found.name == "0 shots, contextual"
