"""The best of several ways of asking, with a score that the choice did not inflate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errorbars import Estimate, estimate, spread
from .lines import Line, full_name, several


@dataclass(frozen=True)
class Chosen:
    """The best way of asking: chosen on half of the draws and items, measured on the others."""

    name: str
    honest: Estimate  # on the items and draws that did not choose it
    optimistic: float  # on all items and draws, the choosing ones included
    alternatives: int
    draws_chosen_on: int = 1
    draws: int = 1  # that `honest` is over
    sentence: str = ""


def choose(lines: Sequence[Line], groups: Sequence[str], seed: int) -> Chosen | None:
    """Halves are drawn by group, so that no group stands in both. None where there is nothing to choose or to halve.

    A line with one draw is chosen and measured on that one, other items. The draws' own variance is not freed of the
    noise of the items, which few draws cannot tell from it (2 to 3 of 5 would hold too seldom).
    """
    eligible = [line for line in lines if line.variant != "random labels"]
    names = sorted(set(groups))
    if len(eligible) < 2 or len(names) < 4:
        return None
    half = set(random.Random(f"halves {seed}").sample(names, len(names) // 2))
    first = np.array([group in half for group in groups])
    cubes = [np.array(line.scores) for line in eligible]
    sides = [_halved(len(cube), seed) for cube in cubes]
    best = int(np.argmax([cube[on][:, :, first].mean() for cube, (on, _) in zip(cubes, sides, strict=True)]))
    line, (chosen_on, measured_on) = eligible[best], sides[best]
    honest = honest_estimate(cubes[best][measured_on][:, :, ~first], [group for group in groups if group not in half])
    name = full_name(line.model, line.form, line.name, several([each.choice for each in lines]))
    found = Chosen(name, honest, float(cubes[best].mean()), len(eligible), len(chosen_on), len(measured_on))
    return replace(found, sentence=_sentence(found, line))


def _halved(draws: int, seed: int) -> tuple[list[int], list[int]]:
    """Draws to choose on, and the others, of which there is one more if their number is odd."""
    if draws == 1:
        return [0], [0]
    chosen = sorted(random.Random(f"draws {seed}").sample(range(draws), draws // 2))
    return chosen, [number for number in range(draws) if number not in chosen]


def honest_estimate(cube: np.ndarray, groups: Sequence[str]) -> Estimate:
    """The mean of scores (draws, orders, items), over other items and, where there are several, other draws."""
    found = estimate(cube.mean((0, 1)), groups if len(set(groups)) < len(groups) else None)
    if cube.shape[0] * cube.shape[1] == 1:
        return found
    own = spread(cube)
    return replace(own, of_draws=own.seen).widened(found)


def _sentence(found: Chosen, line: Line) -> str:
    honest = found.honest
    sets = f" and {found.draws_chosen_on} of its draws of shots" if line.draws > 1 else ""
    score = f"{honest.value:.3f} [{honest.low:.3f}, {honest.high:.3f}]"
    limits = ""
    if line.one_set:
        limits = " That holds for this set only: use --draws 5 or more"
    elif line.draws > 1 and found.draws == 1:
        limits = " The interval is that of one draw, for other items only: use --draws 5 or more"
    elif 1 < line.draws < 4:
        limits = f" {found.draws} draws make a wide interval: use --draws 5 or more"
    return (
        f"best of {found.alternatives}: {found.name}. Chosen on one half of the items{sets}, it scores {score} on the"
        f" other{'s' if sets else ''} ({found.optimistic:.3f} on all, which is optimistic).{limits}"
    )
