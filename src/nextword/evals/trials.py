"""The grid of an evaluation: which items are asked under which conditions, with which shots."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ..base import UsageError
from .chatting import chat_requests
from .checking import warnings_of_copies
from .shots import Select, draw, reorder, with_random_answers
from .task import Item, Request, Task, premises, requests

Overflow = Literal["error", "drop-shots"]
Place = tuple[str, int]


def check_word(option: str, value: object, known: Any) -> None:
    """Raises UsageError for a value that is none of the words of the Literal `known`."""
    if value not in get_args(known):
        raise UsageError(f"{option} {value!r} is not known. Known: {', '.join(get_args(known))}")


@dataclass(frozen=True)
class Condition:
    """One cell of the grid: what a user may choose (model, form, shots), and what chance does (draw, order)."""

    model: str
    form: str
    shots: int
    draw: int = 0
    order: int = 0
    variant: str = "plain"  # or "random labels", "contextual", "batch"

    @property
    def choice(self) -> tuple[str, str, int, str]:
        """What of it is chosen."""
        return self.model, self.form, self.shots, self.variant


@dataclass(frozen=True)
class Design:
    """The grid that a user asked for. Raises UsageError for what makes no sense."""

    shots: tuple[int, ...] = (0,)
    draws: int = 5
    orders: int = 1
    select: Select = "random"
    seed: int = 0
    limit: int | None = None
    baselines: bool = True  # also shots with random labels, and calibrated zero-shot
    per_item: bool = False  # lm-evaluation-harness's own draws, anew for each item

    def __post_init__(self) -> None:
        check_word("--select", self.select, Select)
        for name, value, least in (("draws", self.draws, 1), ("orders", self.orders, 1), ("limit", self.limit, 1)):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; it takes a whole number of at least {least}")
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UsageError(f"shots are {list(self.shots)}; they take different whole numbers from 0 on, as 0,1,4")


@dataclass(frozen=True)
class Trial:
    """One condition: its task, and the shots of every item (one set for all under None)."""

    condition: Condition
    task: Task
    shots: Mapping[Place | None, tuple[Item, ...]]
    per_item: bool = False  # see Design

    def shots_of(self, item: Item) -> tuple[Item, ...]:
        """The shots in this item's prompt."""
        return self.shots[None] if None in self.shots else self.shots[item.place]

    def requests(self, item: Item, dropped: int = 0) -> list[Request]:
        """What the model is asked of `item`, with its first `dropped` shots left out."""
        ask = chat_requests if self.task.chat else requests
        return ask(self.task, self.shots_of(item)[dropped:], item)

    def premises(self, item: Item, premise: str | None = None, dropped: int = 0) -> list[Request]:
        """What pointwise mutual information compares with: each choice behind the same shots and `premise`.

        None takes the form's own. In lm-evaluation-harness's mode it is each choice behind nothing, as there.
        """
        if self.per_item:
            from .harness import unconditional

            return unconditional(self.task, item)
        text = self.task.form.premise if premise is None else premise
        ask = chat_requests if self.task.chat else premises
        return ask(self.task, self.shots_of(item)[dropped:], item, text)


Neighbours = Mapping[Place, tuple[Item, ...]]  # of each item, all that may be its shots, the nearest last


def trials_of(
    task: Task, model: str, form: str, design: Design, items: Sequence[Item], neighbours: Neighbours | None = None
) -> Iterator[Trial]:
    """Every condition of one task on one model. A count of shots above 0 is drawn `draws` times in `orders` orders."""
    for count in design.shots:
        if count == 0:
            yield Trial(Condition(model, form, 0), task, {None: ()}, design.per_item)
        elif design.per_item:
            from .harness import draws

            found = dict(zip((item.place for item in task.items), map(tuple, draws(task, count)), strict=True))
            yield Trial(Condition(model, form, count), task, {item.place: found[item.place] for item in items}, True)
        elif neighbours is not None:
            for order in range(design.orders):
                near: dict[Place | None, tuple[Item, ...]] = {
                    place: reorder(found[-count:], design.seed, order) for place, found in neighbours.items()
                }
                yield Trial(Condition(model, form, count, 0, order), task, near)
        else:
            for number in range(_draws(design)):
                shots = draw(task, count, design.select, design.seed, number)
                for order in range(design.orders):
                    yield Trial(
                        Condition(model, form, count, number, order), task, {None: reorder(shots, design.seed, order)}
                    )
    most = max(design.shots)
    if design.baselines and most and task.form.choices(task.pool[0].values) and not design.per_item:
        for number in range(_draws(design)):
            shots = draw(task, most, _blind(design.select), design.seed, number)
            blind = with_random_answers(task, shots, design.seed, number)
            yield Trial(Condition(model, form, most, number, 0, "random labels"), task, {None: blind})


def _draws(design: Design) -> int:
    return 1 if design.select == "first" else design.draws


def _blind(select: Select) -> Select:
    """How shots are drawn for random labels, where picking by likeness would need every item's own."""
    return "random" if select == "similar" else select


def scored_items(task: Task, design: Design) -> tuple[Item, ...]:
    """The items that every condition is asked: none of them stands among the shots of any.

    A limit takes a seeded sample, so that a file sorted by label does not mislead. For per-item draws
    (lm-evaluation-harness) it takes the first ones, as that does.
    """
    used = _drawn(task, design)
    left = [item for item in task.items if item.place not in used]
    if not left:
        raise UsageError(f"{task.name}: all of its {len(task.items)} examples are shots; none is left to be scored")
    if design.limit is None or design.limit >= len(left):
        return tuple(left)
    if design.per_item:
        return tuple(left[: design.limit])
    chosen = set(random.Random(f"items {design.seed}").sample(range(len(left)), design.limit))
    return tuple(item for place, item in enumerate(left) if place in chosen)


def told(task: Task, design: Design) -> tuple[str, ...]:
    """The task's warnings, how many of its rows are not scored because they are shots, and how many are copies."""
    found = [*task.warnings, *warnings_of_copies(task, scored_items(task, design))]
    if drawn := len(_drawn(task, design)):
        rows = f"{drawn} of {len(task.items)} rows are shots in some draw and are not scored"
        found.append(f"{rows}; use --shots-from to score all")
    return tuple(found)


def _drawn(task: Task, design: Design) -> set[Place]:
    """Rows to be scored that are shots in some draw, where a task takes its shots from what it scores."""
    places = {item.place for item in task.items}
    if design.per_item or places.isdisjoint(item.place for item in task.pool):
        return set()
    drawn = (draw(task, max(design.shots), _blind(design.select), design.seed, n) for n in range(_draws(design)))
    return {shot.place for shots in drawn for shot in shots} & places


def content_free(task: Task, item: Item, text: str) -> Item:
    """The item with every text of its question replaced by `text`, for contextual calibration.

    Raises UsageError where choices differ from item to item: then there is no one set of labels to calibrate.
    """
    emptied = {
        name: text if isinstance(value, str) and not _answers(task, item, name) else value
        for name, value in item.values.items()
    }
    made = replace(item, values=emptied)
    if list(task.form.choices(emptied)) != list(task.form.choices(item.values)):
        raise UsageError(f"{task.name}: its choices differ from item to item, so that there are no labels to calibrate")
    return made


def _answers(task: Task, item: Item, column: str) -> bool:
    """Whether a column holds the answer, so that the form cannot do without it."""
    try:
        return task.form.gold({**item.values, column: "N/A"}) != task.form.gold(item.values)
    except (ValueError, KeyError, UsageError):
        return True
