"""Few-shot sampling: the examples in a prompt, and their order.

A few-shot seed gives one ordering of the pool; k shots are its first k, so that larger sets contain smaller ones. All
items share a set, except with `similar`, which picks the pool's nearest for each item.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..base import UsageError
from .design import Sampler
from .task import Ids, Item, Task

if TYPE_CHECKING:
    from ..engine import Engine

Vectors = np.ndarray  # (texts, width) float32, each of length one


def sample_shots(task: Task, count: int, sampler: Sampler, seed: int, number: int) -> tuple[Item, ...]:
    """The first `count` shots of few-shot seed `number`. Raises UsageError if the pool is too small."""
    pool = task.fewshot_pool
    if count > len(pool):
        raise UsageError(f"{count} shots cannot be drawn from {len(pool)} examples. Use fewer, or give more")
    generator = random.Random(f"shots {seed} {number}")
    if sampler == "first":
        return pool[:count]
    if sampler == "balanced":
        return _balanced(task, count, generator)
    return tuple(generator.sample(pool, len(pool))[:count])  # a sample of `count` need not start with a smaller sample


def _balanced(task: Task, count: int, generator: random.Random) -> tuple[Item, ...]:
    """Every answer in turn, in a new random order each round."""
    by_answer: dict[str, list[Item]] = {}
    for item in generator.sample(task.fewshot_pool, len(task.fewshot_pool)):
        by_answer.setdefault(str(task.format.gold(item.values)), []).append(item)
    shots: list[Item] = []
    while len(shots) < count:
        left = [answer for answer in by_answer if by_answer[answer]]
        shots += [by_answer[answer].pop() for answer in generator.sample(left, len(left))]
    return tuple(shots[:count])


def permuted(shots: Sequence[Item], seed: int, permutation: int) -> tuple[Item, ...]:
    """The same shots in another order; 0: as drawn (Lu et al. 2022, 2104.08786)."""
    if permutation == 0:
        return tuple(shots)
    return tuple(random.Random(f"order {seed} {permutation}").sample(list(shots), len(shots)))


def with_random_answers(task: Task, shots: Sequence[Item], seed: int, number: int) -> tuple[Item, ...]:
    """The shots of few-shot seed `number` with random answers, different for each seed.

    Any remaining benefit does not come from their labels (Min et al. 2022, 2202.12837).
    """
    generator = random.Random(f"labels {seed} {number}")
    return tuple(
        replace(
            shot,
            values=task.format.with_answer(shot.values, generator.randrange(len(task.format.choices(shot.values)))),
        )
        for shot in shots
    )


def embed(engine: Engine, texts: Sequence[Ids]) -> Vectors:
    """Each text as the mean of the model's last hidden states over its tokens, scaled to length one."""
    means = np.stack([engine.hidden(text).mean(0) for text in texts])
    vectors: Vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


def nearest(pool: Vectors, items: Vectors, count: int) -> np.ndarray:
    """For each item the pool's `count` nearest by cosine, (items, count), the nearest last: next to the question.

    Liu et al. 2022, 2101.06804.
    """
    similarity = items @ pool.T
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return best[:, ::-1]


def repeated_items(task: Task) -> int:
    """The number of scored items with the same text as another row of the pool."""
    pool: dict[str, set[tuple[str, int]]] = {}
    for shot in task.fewshot_pool:
        pool.setdefault(_question(task, shot), set()).add(shot.row_id)
    return sum(bool(pool.get(_question(task, item), set()) - {item.row_id}) for item in task.items)


def _question(task: Task, item: Item) -> str:
    return " ".join(task.format.questions(item.values)[0][0].split()).casefold()
