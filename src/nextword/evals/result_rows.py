"""A row of the result table: one configuration over its seeds and permutations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from .paired_tests import PermutationsTest, cochran
from .results import ConditionResult
from .statistics import Estimate, Spread, estimate, is_share, spread

ENOUGH_SEEDS = 5  # with fewer, intervals undercover: with 2, 90% instead of 95% (sd between seeds 1 logit)
Choice = tuple[str, str, int, str]  # model, template, shots, variant


@dataclass(frozen=True)
class SeedScore:
    """The score of one few-shot seed in one permutation, over all items."""

    fewshot_seed: int
    permutation: int
    score: float
    shots: float  # in the prompts, on average: fewer than requested if whole shots were dropped
    fewest_shots: int = 0  # in any of its prompts


@dataclass(frozen=True)
class ResultRow:
    """One configuration (model, template, shots, variant), over all its few-shot seeds and permutations."""

    model: str
    template: str
    shots: int
    variant: str
    score: Estimate
    lowest: float  # over seeds and permutations
    highest: float
    spread: Spread | None  # None with one seed in one permutation
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: tuple[tuple[tuple[float, ...], ...], ...] = ()  # (seeds, permutations, items)
    one_set: bool = False  # all items shared one set of shots: another set may score differently
    per_seed: tuple[SeedScore, ...] = ()
    caveat: str = ""  # why the score may not generalise to other shots
    interval_covers: str = "other items"  # what the interval of `score` generalises to
    baseline: bool = False  # added by default: shots with random labels, calibrated zero-shot
    permutations_test: PermutationsTest | None = None  # of correct answers in two or more permutations
    effective_shots: float = 0.0  # in the prompts, averaged over seeds, permutations and items
    fewest_shots: int = 0  # in any prompt

    @property
    def seeds(self) -> int:
        """Sets of shots."""
        return len(self.scores)

    @property
    def choice(self) -> Choice:
        """The part of it that a user chooses."""
        return self.model, self.template, self.shots, self.variant

    @property
    def shots_left(self) -> str:
        """The mean number of shots in the prompts, never rounded up; "" if none were dropped."""
        mean = math.floor(100 * self.effective_shots + 1e-6) / 100
        return f"{mean:g} in the prompts" if mean < self.shots else ""

    @property
    def name(self) -> str:
        """Its name among the others."""
        return row_name(self.shots, self.variant, self.one_set)


def row_name(shots: int, variant: str, one_set: bool) -> str:
    """As "4 shots, batch"; a single set of shots is never called "4 shots"."""
    words = f"{'this one set of ' * one_set}{shots} shot{'s' * (shots != 1)}"
    return words if variant == "plain" else f"{words}, {variant}"


def differing(choices: Iterable[Sequence[Any]]) -> tuple[bool, bool]:
    """Whether models differ, and whether templates do."""
    choices = list(choices)
    return len({model for model, *_ in choices}) > 1, len({template for _, template, *_ in choices}) > 1


def prefixes(model: str, template: str, differ: tuple[bool, bool]) -> list[str]:
    """Model and template, each only if rows differ in it."""
    return [model] * differ[0] + [template] * differ[1]


def full_name(model: str, template: str, name: str, differ: tuple[bool, bool]) -> str:
    """A row's name, with model and template if these differ."""
    return ", ".join([*prefixes(model, template, differ), name])


def full_names(rows: Sequence[ResultRow]) -> dict[Choice, str]:
    """Each row's unique name, by its choice."""
    differ = differing([row.choice for row in rows])
    return {row.choice: full_name(row.model, row.template, row.name, differ) for row in rows}


def permutation_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Whether correctness depends on the order of the shots, for each tested row."""
    names = full_names(rows)
    return [f"{names[row.choice]}: {row.permutations_test.sentence}" for row in rows if row.permutations_test]


def row_of(
    choice: Choice, results: Sequence[ConditionResult], groups: Sequence[str] | None, shared_shots: bool, baseline: bool
) -> ResultRow:
    """The row of a choice's conditions. `groups`: of the items, if some share one."""
    cube = _cube(results)
    own = spread(cube) if len(results) > 1 else None
    alone, means = estimate(cube.mean((0, 1)), groups), cube.mean(2)
    one_set = shared_shots and choice[2] > 0 and len(cube) == 1
    return ResultRow(
        *choice, alone if own is None else own.widened(alone, is_share(cube)), float(means.min()), float(means.max()),
        own, _mean_metrics(results), tuple(tuple(tuple(map(float, items)) for items in orders) for orders in cube),
        one_set=one_set, per_seed=tuple(map(_seed_score, results)), caveat=_caveat(len(cube), one_set),
        interval_covers=_covers(*cube.shape[:2]), baseline=baseline,
        permutations_test=cochran(cube) if groups is None else None,
        effective_shots=float(np.mean([answer.shots for result in results for answer in result.answers])),
        fewest_shots=min(answer.shots for result in results for answer in result.answers),
    )  # fmt: skip


def _seed_score(result: ConditionResult) -> SeedScore:
    shots, condition = [answer.shots for answer in result.answers], result.condition
    score = float(result.scores.mean())
    return SeedScore(condition.fewshot_seed, condition.permutation, score, float(np.mean(shots)), min(shots))


def _cube(results: Sequence[ConditionResult]) -> np.ndarray:
    """Scores as (seeds, permutations, items)."""
    in_order = sorted(results, key=lambda result: (result.condition.fewshot_seed, result.condition.permutation))
    seeds = groupby(in_order, key=lambda result: result.condition.fewshot_seed)
    return np.array([[result.scores for result in own] for _, own in seeds])


def _mean_metrics(results: Sequence[ConditionResult]) -> dict[str, float]:
    metrics = [result.metrics for result in results]
    return {name: float(np.mean([own[name] for own in metrics])) for name in metrics[0]}


def _caveat(seeds: int, one_set: bool) -> str:
    if one_set:
        return "with this one set of shots"
    return f"from {seeds} few-shot seeds; use {ENOUGH_SEEDS} or more" if 1 < seeds < ENOUGH_SEEDS else ""


def _covers(seeds: int, permutations: int) -> str:
    more = "few-shot seeds" if seeds > 1 else "permutations" if permutations > 1 else ""
    return f"other items and other {more}" if more else "other items"
