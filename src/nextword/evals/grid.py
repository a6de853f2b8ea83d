"""The grid of an evaluation: conditions × items, with their shots."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..base import UsageError
from .chat_prompts import chat_requests
from .checks import warnings_of_copies
from .design import Condition, Design
from .fewshot import permuted, sample_shots, with_random_answers
from .task import Item, LogprobRequest, Task, requests

RowId = tuple[str, int]
Neighbours = Mapping[RowId, tuple[Item, ...]]  # each item's candidate shots, the nearest last


@dataclass(frozen=True)
class Trial:
    """One condition: its task, and the shots of every item (a shared set under None)."""

    condition: Condition
    task: Task
    shots: Mapping[RowId | None, tuple[Item, ...]]

    def shots_of(self, item: Item) -> tuple[Item, ...]:
        """The shots in this item's prompt."""
        return self.shots[None] if None in self.shots else self.shots[item.row_id]

    def requests(self, item: Item, dropped: int = 0, premise: str | None = None) -> list[LogprobRequest]:
        """The requests for `item`, without its first `dropped` shots; with `premise` as the question."""
        make = chat_requests if self.task.chat else requests
        return make(self.task, self.shots_of(item)[dropped:], item, premise)


def trials_of(
    task: Task, model: str, template: str, design: Design, neighbours: Neighbours | None = None
) -> Iterator[Trial]:
    """Every condition of one task on one model: each number of shots with each set of them in each permutation."""
    for count in design.shots:
        if count == 0:
            yield Trial(Condition(model, template, 0), task, {None: ()})
            continue
        for number in range(design.sets):
            shots: dict[RowId | None, tuple[Item, ...]]
            if neighbours is not None:
                shots = {row_id: nearest[-count:] for row_id, nearest in neighbours.items()}
            else:
                shots = {None: sample_shots(task, count, design.sampler, design.seed, number)}
            for permutation in range(design.permutations):
                in_order = {key: permuted(items, design.seed, permutation) for key, items in shots.items()}
                yield Trial(Condition(model, template, count, number, permutation), task, in_order)
    most = max(design.shots)
    if design.baselines and most and task.output == "multiple_choice":
        for number, drawn in enumerate(_drawn(task, design)):
            blind = with_random_answers(task, drawn, design.seed, number)
            yield Trial(Condition(model, template, most, number, 0, "random labels"), task, {None: blind})


def _drawn(task: Task, design: Design) -> list[tuple[Item, ...]]:
    """The largest set of shots of every seed, if items share it; random ones for similar sampling."""
    sampler, seeds = design.sampler, design.fewshot_seeds if design.sampler == "similar" else design.sets
    sampler = "random" if sampler == "similar" else sampler
    return [sample_shots(task, max(design.shots), sampler, design.seed, number) for number in range(seeds)]


def scored_items(task: Task, design: Design) -> tuple[Item, ...]:
    """The items to score under every condition: none of them is a shot in any.

    A limit takes a seeded sample, so that a file sorted by label gives no bias.
    """
    used = _shot_rows(task, design)
    items = [item for item in task.items if item.row_id not in used]
    if not items:
        raise UsageError(f"{task.name}: all of its {len(task.items)} examples are shots; none is left to score")
    if design.limit is None or design.limit >= len(items):
        return tuple(items)
    chosen = set(random.Random(f"items {design.seed}").sample(range(len(items)), design.limit))
    return tuple(item for index, item in enumerate(items) if index in chosen)


def grid_warnings(task: Task, design: Design, items: Sequence[Item]) -> tuple[str, ...]:
    """The task's warnings, and those about copies among its `items` and about rows used as shots."""
    warnings = [*task.warnings, *warnings_of_copies(task, items)]
    if drawn := len(_shot_rows(task, design)):
        rows = f"{drawn} of {len(task.items)} rows are shots for some seed and are not scored"
        warnings.append(f"{rows}; use --shots-from to score all")
    return tuple(warnings)


def _shot_rows(task: Task, design: Design) -> set[RowId]:
    """Rows that are shots for some seed, if a task takes its shots from the scored rows."""
    scored = {item.row_id for item in task.items}
    if scored.isdisjoint(shot.row_id for shot in task.fewshot_pool):
        return set()
    return {shot.row_id for shots in _drawn(task, design) for shot in shots} & scored
