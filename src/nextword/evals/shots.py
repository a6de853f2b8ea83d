"""Which examples stand in a prompt, and in which order.

A draw is one ordering of the pool; k shots are its first k, so that more shots keep those before them. One set serves
all items, but for `similar`, which picks for each item the pool's nearest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
import torch

from ..base import UsageError
from ..models import Model
from .task import Ids, Item, Task

Select = Literal["random", "balanced", "first", "similar"]
Vectors = np.ndarray  # (texts, width) float32, each of length one


def draw(task: Task, count: int, select: Select, seed: int, number: int) -> tuple[Item, ...]:
    """The first `count` items of draw `number`. Raises UsageError where the pool is too small."""
    if count > len(task.pool):
        raise UsageError(f"{count} shots cannot be drawn from {len(task.pool)} examples. Ask for fewer, or give more")
    generator = random.Random(f"shots {seed} {number}")
    if select == "first":
        return task.pool[:count]
    if select == "balanced":
        return _balanced(task, count, generator)
    whole = generator.sample(task.pool, len(task.pool))  # a sample of `count` need not begin as a smaller one does
    return tuple(whole[:count])


def _balanced(task: Task, count: int, generator: random.Random) -> tuple[Item, ...]:
    """Every answer in turn, in an order drawn anew each round."""
    by_answer: dict[str, list[Item]] = {}
    for item in generator.sample(task.pool, len(task.pool)):
        by_answer.setdefault(str(task.form.gold(item.values)), []).append(item)
    found: list[Item] = []
    while len(found) < count:
        left = [answer for answer in by_answer if by_answer[answer]]
        found += [by_answer[answer].pop() for answer in generator.sample(left, len(left))]
    return tuple(found[:count])


def reorder(shots: Sequence[Item], seed: int, order: int) -> tuple[Item, ...]:
    """The same shots in order number `order`; 0 is as drawn (Lu et al. 2022, 2104.08786)."""
    if order == 0:
        return tuple(shots)
    return tuple(random.Random(f"order {seed} {order}").sample(list(shots), len(shots)))


def with_random_answers(task: Task, shots: Sequence[Item], seed: int, number: int) -> tuple[Item, ...]:
    """The shots of draw `number` with answers drawn blindly, for each draw anew.

    What still helps is not their labels (Min et al. 2022, 2202.12837).
    """
    generator = random.Random(f"labels {seed} {number}")
    return tuple(
        replace(
            shot,
            values=task.form.with_answer(shot.values, generator.randrange(len(task.form.choices(shot.values)))),
        )
        for shot in shots
    )


@torch.inference_mode()
def embed(model: Model, texts: Sequence[Ids]) -> Vectors:
    """Each text as the mean of the model's last hidden states over its tokens, scaled to length one."""
    rows = []
    for text in texts:
        hidden = model.hidden(torch.tensor([text], device=model.device))[0].float().mean(0)
        rows.append((hidden / hidden.norm()).numpy(force=True))
    return np.stack(rows)


def nearest(pool: Vectors, items: Vectors, count: int) -> np.ndarray:
    """For each item the pool's `count` nearest by cosine, (items, count), the nearest last: beside the question.

    Liu et al. 2022, 2101.06804.
    """
    closeness = items @ pool.T
    best = np.argsort(-closeness, axis=1, kind="stable")[:, :count]
    return best[:, ::-1]


def repeated(task: Task) -> list[tuple[Item, Item]]:
    """Pairs of a scored item and another of the pool that says the same."""
    known: dict[str, list[Item]] = {}
    for item in task.pool:
        known.setdefault(_said(task, item), []).append(item)
    found = []
    for item in task.items:
        others = (other for other in known.get(_said(task, item), ()) if other.place != item.place)
        found += [(item, other) for other in islice(others, 1)]
    return found


def _said(task: Task, item: Item) -> str:
    return " ".join(task.form.asks(item.values)[0][0].split()).casefold()
