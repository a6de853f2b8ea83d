"""Answers → numbers with error bars: what each way of asking scored, and which differences are real."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from ..base import UsageError
from .errorbars import (
    Comparison,
    Estimate,
    Spread,
    compare,
    estimate,
    holm,
    items_needed,
    majority_accuracy,
    spread,
    verdict,
    visible_difference,
)
from .evaluation import Cell, Collected, Cost, Notes
from .store import Kept

LEVEL = 0.05
Choice = tuple[str, str, int, str]  # model, form, shots, variant


@dataclass(frozen=True)
class DrawScore:
    """What one draw of shots in one order scored, over all items."""

    draw: int
    order: int
    score: float
    shots: float  # that stood in the prompts, as a mean: fewer than asked for where whole shots were dropped
    fewest_shots: int = 0  # in any of its prompts


@dataclass(frozen=True)
class Line:
    """One way of asking, over all its draws and orders."""

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
    one_set: bool = False  # one set of shots served all items: its score is not that of other sets
    per_draw: tuple[DrawScore, ...] = ()
    effective_shots: float = 0.0  # that stood in the prompts, as a mean over draws, orders and items
    fewest_shots: int = 0  # in any prompt

    @property
    def draws(self) -> int:
        """Sets of shots."""
        return len(self.scores)

    @property
    def name(self) -> str:
        """What tells it from the others, in words."""
        words = f"{self.shots} shot{'s' * (self.shots != 1)}"
        return words if self.variant == "plain" else f"{words}, {self.variant}"


@dataclass(frozen=True)
class Compared:
    """Two ways of asking the same items. `p` is corrected for the number of comparisons (Holm)."""

    before: str
    after: str
    comparison: Comparison
    p: float
    sentence: str


@dataclass(frozen=True)
class Chosen:
    """The best way of asking, chosen on one half of the items and measured on the other."""

    name: str
    honest: Estimate  # on the items that did not choose it
    optimistic: float  # on all items, the choosing ones included
    alternatives: int


@dataclass(frozen=True)
class Result:
    """An evaluation, as it is printed, stored and drawn."""

    task: str
    metric: str
    items: int
    groups: int | None
    lines: tuple[Line, ...]
    comparisons: tuple[Compared, ...]
    majority: float | None
    chosen: Chosen | None
    power: str | None
    costs: tuple[Cost, ...]
    notes: Notes
    seconds: float
    read: int
    places: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def table(self) -> list[dict[str, Any]]:
        """A flat row a way of asking, for pandas or polars: `pandas.DataFrame(result.table())`."""
        return [
            {
                "task": self.task, "model": line.model, "form": line.form, "shots": line.shots, "variant": line.variant,
                self.metric: line.score.value, "standard_error": line.score.standard_error, "low": line.score.low,
                "high": line.score.high, "items": line.score.count, "lowest": line.lowest, "highest": line.highest,
            }
            for line in self.lines
        ]  # fmt: skip


def summarise(collected: Collected, seed: int = 0, power: float | None = None) -> Result:
    """The numbers of an evaluation. `power` asks how many items would show that difference."""
    groups = [item.group or f"{item.split} {item.index}" for item in collected.items]
    grouped = len(set(groups)) < len(groups)
    by_choice: dict[Choice, list[Cell]] = {}
    for cell in collected.cells:
        by_choice.setdefault(cell.condition.choice, []).append(cell)
    lines = tuple(
        _line(choice, cells, groups if grouped else None, collected.same_shots) for choice, cells in by_choice.items()
    )
    several = (len({line.model for line in lines}) > 1, len({line.form for line in lines}) > 1)
    comparisons = _comparisons(lines, groups if grouped else None, several)
    return Result(
        task=collected.task.name,
        metric=_metric(collected),
        items=len(collected.items),
        groups=len(set(groups)) if grouped else None,
        lines=lines,
        comparisons=comparisons,
        majority=_majority(collected),
        chosen=_choose(lines, groups, seed, several),
        power=_power(power, comparisons, len(collected.items)),
        costs=collected.costs,
        notes=collected.notes,
        seconds=collected.seconds,
        read=collected.read,
        places=tuple(f"{item.split} {item.index}" for item in collected.items),
    )


def _line(choice: Choice, cells: Sequence[Cell], groups: Sequence[str] | None, same_shots: bool) -> Line:
    cube = _cube(cells)
    own = spread(cube) if len(cells) > 1 else None
    found = estimate(cube.mean((0, 1)), groups)
    model, form, shots, variant = choice
    means = cube.mean(2)
    return Line(
        model, form, shots, variant, found if own is None else own.widened(found), float(means.min()),
        float(means.max()), own, _averaged(cells),
        tuple(tuple(tuple(map(float, items)) for items in orders) for orders in cube),
        one_set=same_shots and shots > 0 and len(cube) == 1,
        per_draw=tuple(
            DrawScore(
                cell.condition.draw, cell.condition.order, float(cell.scores.mean()),
                float(np.mean([answer.shots for answer in cell.answers])), min(answer.shots for answer in cell.answers),
            )
            for cell in cells
        ),
        effective_shots=float(np.mean([answer.shots for cell in cells for answer in cell.answers])),
        fewest_shots=min(answer.shots for cell in cells for answer in cell.answers),
    )  # fmt: skip


def _cube(cells: Sequence[Cell]) -> np.ndarray:
    """Scores as (draws, orders, items)."""
    in_order = sorted(cells, key=lambda cell: (cell.condition.draw, cell.condition.order))
    draws = [list(found) for _, found in groupby(in_order, key=lambda cell: cell.condition.draw)]
    return np.array([[cell.scores for cell in found] for found in draws])


def _averaged(cells: Sequence[Cell]) -> dict[str, float]:
    return {name: float(np.mean([cell.metrics[name] for cell in cells])) for name in cells[0].metrics}


def _comparisons(
    lines: Sequence[Line], groups: Sequence[str] | None, several: tuple[bool, bool]
) -> tuple[Compared, ...]:
    """More shots with the fewest, corrections with none, further forms and models with the first at the same shots."""
    pairs: list[tuple[Line, Line]] = []
    by_name = {(line.model, line.form, line.shots, line.variant): line for line in lines}
    first_model, first_form = lines[0].model, lines[0].form
    for line in lines:
        fewest = min(each.shots for each in lines if (each.model, each.form) == (line.model, line.form))
        others = [
            (line.model, line.form, line.shots if line.variant != "plain" else fewest, "plain"),
            (line.model, first_form, line.shots, line.variant) if line.variant == "plain" else None,
            (first_model, line.form, line.shots, line.variant) if line.variant == "plain" else None,
        ]
        for key in others:
            if key is not None and key in by_name and by_name[key] is not line:
                pairs.append((by_name[key], line))
    compared = [_compare_lines(before, after, groups) for before, after in pairs]
    corrected = holm([each.p for each in compared])
    return tuple(
        Compared(
            _named(before, several), _named(after, several), each, p,
            verdict(_named(after, several), _named(before, several), each, p, LEVEL),
        )
        for (before, after), each, p in zip(pairs, compared, corrected, strict=True)
    )  # fmt: skip


def _compare_lines(before: Line, after: Line, groups: Sequence[str] | None) -> Comparison:
    """Paired by item, and by draw and order where both have them."""
    return compare(*_paired(np.array(after.scores), np.array(before.scores)), groups)


def _paired(after: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (draws, orders, items), averaged over what only one of them has more than one of."""
    for axis in (0, 1):
        if 1 not in (after.shape[axis], before.shape[axis]) and after.shape[axis] != before.shape[axis]:
            after, before = after.mean(axis, keepdims=True), before.mean(axis, keepdims=True)
    return after, before


def _named(line: Line, several: tuple[bool, bool]) -> str:
    """The line's name, with model and form where these differ."""
    parts = [line.model] * several[0] + [line.form] * several[1] + [line.name]
    return ", ".join(parts)


def _metric(collected: Collected) -> str:
    """What `score` is. Higher is better."""
    if collected.task.output in ("multiple_choice", "loglikelihood"):
        return "accuracy"
    if collected.task.output == "loglikelihood_rolling":
        return "ln p a byte"
    return collected.task.metrics[0].name if collected.task.metrics else "score"


def _majority(collected: Collected) -> float | None:
    """Accuracy of always giving the pool's (or else the items') most frequent label."""
    if collected.task.output != "multiple_choice":
        return None
    gold = [collected.task.form.gold(item.values) for item in collected.items]
    seen = [collected.task.form.gold(item.values) for item in collected.task.pool] or gold
    if any(isinstance(each, list | tuple) for each in (*gold, *seen)):
        return None
    return majority_accuracy(seen, gold)


def _choose(lines: Sequence[Line], groups: Sequence[str], seed: int, several: tuple[bool, bool]) -> Chosen | None:
    """Halves are drawn by group, so that no group stands in both."""
    eligible = [line for line in lines if line.variant != "random labels"]
    names = sorted(set(groups))
    if len(eligible) < 2 or len(names) < 4:
        return None
    half = set(random.Random(f"halves {seed}").sample(names, len(names) // 2))
    choosing = np.array([group in half for group in groups])
    scores = [np.array(line.scores).mean((0, 1)) for line in eligible]
    best = int(np.argmax([each[choosing].mean() for each in scores]))
    rest = [group for group in groups if group not in half]
    honest = estimate(scores[best][~choosing], rest if len(set(rest)) < len(rest) else None)
    return Chosen(_named(eligible[best], several), honest, float(scores[best].mean()), len(eligible))


def _power(difference: float | None, comparisons: Sequence[Compared], items: int) -> str | None:
    """How many items would show `difference`, at the share of items that changed here."""
    if difference is None or not comparisons:
        return None
    share = max(difference, float(np.median([each.comparison.changed_share for each in comparisons])))
    needed, smallest = items_needed(difference, share), visible_difference(items, share)
    return (
        f"{needed:,} items would show a difference of {difference:g} four times in five, where {share:.0%} of the items"
        f" change (as here); these {items:,} show one of {smallest:.3f}"
    )


def compare_kept(first: Kept, second: Kept) -> list[Compared]:
    """Two evaluations of the store, line by line, over the items that both asked.

    Raises UsageError where they share no items or no way of asking.
    """
    one, other = first.result, second.result
    shared = [place for place in one["places"] if place in set(other["places"])]
    if one["task"] != other["task"] or not shared:
        raise UsageError(f"{first.name!r} and {second.name!r} asked different items; there is nothing to compare")
    rows = [{place: n for n, place in enumerate(each["places"])} for each in (one, other)]
    at = [[row[place] for place in shared] for row in rows]
    pairs = [
        (a, b) for a in one["lines"] for b in other["lines"] if (a["shots"], a["variant"]) == (b["shots"], b["variant"])
    ]
    if not pairs:
        raise UsageError(f"{first.name!r} and {second.name!r} have no number of shots in common")
    compared = [
        compare(*_paired(np.array(b["scores"])[:, :, at[1]], np.array(a["scores"])[:, :, at[0]])) for a, b in pairs
    ]
    found = []
    for (a, b), each, p in zip(pairs, compared, holm([each.p for each in compared]), strict=True):
        names = [_kept_name(kept, line) for kept, line in ((first, a), (second, b))]
        found.append(Compared(names[0], names[1], each, p, verdict(names[1], names[0], each, p, LEVEL)))
    return found


def _kept_name(kept: Kept, line: dict[str, Any]) -> str:
    variant = "" if line["variant"] == "plain" else f", {line['variant']}"
    return f"{kept.name}, {line['form']}, {line['shots']} shots{variant}"
