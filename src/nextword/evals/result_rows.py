"""The score of one configuration over all its draws of shots and their orders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from .collected import Cell
from .comparing import OrdersTest, cochran
from .errorbars import Estimate, Spread, estimate, is_share, spread

ENOUGH_DRAWS = 5  # with fewer, intervals undercover: with 2, 90% instead of 95% (sd between draws 1 logit)
Choice = tuple[str, str, int, str]  # model, form, shots, variant


@dataclass(frozen=True)
class DrawScore:
    """What one draw of shots in one order scored, over all items."""

    draw: int
    order: int
    score: float
    shots: float  # in the prompts, on average: fewer than requested if whole shots were dropped
    fewest_shots: int = 0  # in any of its prompts


@dataclass(frozen=True)
class Line:
    """One configuration (model, template, shots, variant), over all its draws and orders."""

    model: str
    form: str
    shots: int
    variant: str
    score: Estimate
    lowest: float  # of any draw and order
    highest: float
    spread: Spread | None  # None where there was one draw in one order
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: tuple[tuple[tuple[float, ...], ...], ...] = ()  # (draws, orders, items)
    one_set: bool = False  # one set of shots served all items: another set may score differently
    per_draw: tuple[DrawScore, ...] = ()
    caveat: str = ""  # why the score may not hold for other shots, in words
    interval_covers: str = "other items"  # what the interval of `score` generalises to
    baseline: bool = False  # added by default: shots with random labels, calibrated zero-shot
    orders_test: OrdersTest | None = None  # of right and wrong in two or more orders
    effective_shots: float = 0.0  # in the prompts, averaged over draws, orders and items
    fewest_shots: int = 0  # in any prompt

    @property
    def draws(self) -> int:
        """Sets of shots."""
        return len(self.scores)

    @property
    def choice(self) -> Choice:
        """The part of it that a user chooses."""
        return self.model, self.form, self.shots, self.variant

    @property
    def shots_left(self) -> str:
        """How many shots stood in the prompts, as a mean that is never rounded up; "" where all did."""
        found = math.floor(100 * self.effective_shots + 1e-6) / 100
        return f"{found:g} in the prompts" if found < self.shots else ""

    @property
    def name(self) -> str:
        """Its name among the others."""
        return line_name(self.shots, self.variant, self.one_set)


def line_name(shots: int, variant: str, one_set: bool) -> str:
    """As "4 shots, batch"; a single set of shots is never called "4 shots"."""
    words = f"{'this one set of ' * one_set}{shots} shot{'s' * (shots != 1)}"
    return words if variant == "plain" else f"{words}, {variant}"


def several(choices: Iterable[Sequence[Any]]) -> tuple[bool, bool]:
    """Whether models differ, and whether forms do: the first two of each choice."""
    choices = list(choices)
    return len({model for model, *_ in choices}) > 1, len({form for _, form, *_ in choices}) > 1


def prefixes(model: str, form: str, differ: tuple[bool, bool]) -> list[str]:
    """Model and form, each only where lines differ in it."""
    return [model] * differ[0] + [form] * differ[1]


def full_name(model: str, form: str, name: str, differ: tuple[bool, bool]) -> str:
    """A line's name, with model and form where these differ."""
    return ", ".join([*prefixes(model, form, differ), name])


def line_of(
    choice: Choice, cells: Sequence[Cell], groups: Sequence[str] | None, same_shots: bool, baseline: bool
) -> Line:
    """The line of a choice's cells. `groups` of the items, where some share one."""
    cube = _cube(cells)
    own = spread(cube) if len(cells) > 1 else None
    found, means = estimate(cube.mean((0, 1)), groups), cube.mean(2)
    model, form, shots, variant = choice
    one_set = same_shots and shots > 0 and len(cube) == 1
    return Line(
        model, form, shots, variant, found if own is None else own.widened(found, is_share(cube)),
        float(means.min()), float(means.max()), own, _averaged(cells),
        tuple(tuple(tuple(map(float, items)) for items in orders) for orders in cube),
        one_set=one_set, per_draw=tuple(map(_draw_score, cells)), caveat=_caveat(len(cube), one_set),
        interval_covers=_covers(*cube.shape[:2]), baseline=baseline,
        orders_test=cochran(cube) if groups is None else None,
        effective_shots=float(np.mean([answer.shots for cell in cells for answer in cell.answers])),
        fewest_shots=min(answer.shots for cell in cells for answer in cell.answers),
    )  # fmt: skip


def _draw_score(cell: Cell) -> DrawScore:
    shots = [answer.shots for answer in cell.answers]
    return DrawScore(
        cell.condition.draw, cell.condition.order, float(cell.scores.mean()), float(np.mean(shots)), min(shots)
    )


def _cube(cells: Sequence[Cell]) -> np.ndarray:
    """Scores as (draws, orders, items)."""
    in_order = sorted(cells, key=lambda cell: (cell.condition.draw, cell.condition.order))
    draws = [list(found) for _, found in groupby(in_order, key=lambda cell: cell.condition.draw)]
    return np.array([[cell.scores for cell in found] for found in draws])


def _averaged(cells: Sequence[Cell]) -> dict[str, float]:
    return {name: float(np.mean([cell.metrics[name] for cell in cells])) for name in cells[0].metrics}


def _caveat(draws: int, one_set: bool) -> str:
    if one_set:
        return "with this one set of shots"
    return f"from {draws} draws of shots; use {ENOUGH_DRAWS} or more" if 1 < draws < ENOUGH_DRAWS else ""


def _covers(draws: int, orders: int) -> str:
    more = "draws of shots" if draws > 1 else "orders" if orders > 1 else ""
    return f"other items and other {more}" if more else "other items"
