"""Answers → numbers with error bars: what each configuration scored, and which differences are real."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..base.fields import finite
from .choosing import Chosen, choose
from .collected import Cell, Collected, Cost, Notes
from .comparisons import Compared, Family, compare_pairs, families, pairs_of
from .errorbars import majority_accuracy
from .evaluation import Evaluation
from .lines import Choice, DrawScore, Line, line_of
from .power import Planned, planned_power, power_of, power_sentence
from .provenance import Provenance
from .requirements import Ask, Requirement, judge, pairs_asked
from .task import Item

__all__ = ["Chosen", "Compared", "DrawScore", "Line", "Result", "summarise"]


@dataclass(frozen=True)
class AskedRow:
    """A row that was scored: its digest pairs it with the same row of another evaluation."""

    digest: str
    place: str
    group: str | None


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
    rows: tuple[AskedRow, ...]  # in the order of the scores
    families: tuple[Family, ...] = ()  # how the comparisons are corrected
    requirements: tuple[Requirement, ...] = ()
    provenance: Provenance | None = None

    def draws_table(self) -> list[dict[str, Any]]:
        """A flat row per draw and order, for pandas or polars; `effective_shots` is the mean number in the prompts."""
        return [
            {
                "task": self.task, "model": line.model, "form": line.form, "shots": line.shots, "variant": line.variant,
                "draw": each.draw, "order": each.order, self.metric: each.score, "effective_shots": each.shots,
            }
            for line in self.lines
            for each in line.per_draw
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON: what has no end (an error from one item) is None."""
        found: dict[str, Any] = finite(asdict(self))
        return found

    def table(self) -> list[dict[str, Any]]:
        """A flat row per configuration, for pandas or polars: `pandas.DataFrame(result.table())`."""
        return [
            {
                "task": self.task, "model": line.model, "form": line.form, "shots": line.shots, "variant": line.variant,
                self.metric: line.score.value, "standard_error": line.score.standard_error, "low": line.score.low,
                "high": line.score.high, "items": line.score.count, "lowest": line.lowest, "highest": line.highest,
            }
            for line in self.lines
        ]  # fmt: skip


def summarise(collected: Collected, seed: int = 0, power: float | None = None, asks: Sequence[Ask] = ()) -> Result:
    """The statistics of an evaluation. `power` is a difference to detect; `asks` are requirements to judge.

    Raises UsageError for an ask whose line is missing.
    """
    groups = _groups(collected.items)
    by_choice: dict[Choice, list[Cell]] = {}
    for cell in collected.cells:
        by_choice.setdefault(cell.condition.choice, []).append(cell)
    baselines = _baselines(by_choice, collected.calibrate)
    shared = groups if len(set(groups)) < len(groups) else None
    lines = tuple(
        line_of(choice, cells, shared, collected.same_shots, choice in baselines) for choice, cells in by_choice.items()
    )
    pairs = pairs_of(list(by_choice), baselines, pairs_asked(asks))
    comparisons = compare_pairs(pairs, lines, shared)
    return Result(
        task=collected.task.name,
        metric=_metric(collected),
        items=len(collected.items),
        groups=len(set(groups)) if shared is not None else None,
        lines=lines,
        comparisons=comparisons,
        majority=_majority(collected),
        chosen=choose(lines, groups, seed),
        power=_power(power, comparisons),
        costs=collected.costs,
        notes=collected.notes,
        seconds=collected.seconds,
        read=collected.read,
        rows=tuple(AskedRow(item.digest, item.label, item.group) for item in collected.items),
        families=families(comparisons),
        requirements=judge(asks, lines, dict(zip(pairs, comparisons, strict=True)), shared),
    )


def planned(evaluation: Evaluation, asks: Sequence[Ask], difference: float) -> Planned:
    """Whether the evaluation could detect `difference`, before the run, under assumptions that are stated."""
    conditions, groups = evaluation.conditions(), _groups(evaluation.items)
    choices = list(dict.fromkeys(condition.choice for condition in conditions))
    pairs = pairs_of(choices, _baselines(choices, evaluation.settings.calibrate), pairs_asked(asks))
    clusters, draws = len(set(groups)), 1 + max(condition.draw for condition in conditions)
    one_set = draws == 1 and max(evaluation.design.shots) > 0 and evaluation.same_shots
    grouped = clusters if clusters < len(groups) else None
    return planned_power(difference, len(groups), grouped, draws, sum(pairs.values()), one_set)


def _groups(items: Sequence[Item]) -> list[str]:
    """The unit that is independent of the others: each item's group, or else the item itself."""
    return [item.label if item.group is None else f"group {item.group}" for item in items]


def _baselines(choices: Iterable[Choice], calibrate: Sequence[str]) -> set[Choice]:
    """The default baselines: shots with random labels, calibrated zero-shot."""
    return {choice for choice in choices if choice[3] not in ("plain", *calibrate)}


def _metric(collected: Collected) -> str:
    """What `score` is. Higher is better."""
    if collected.task.output in ("multiple_choice", "loglikelihood"):
        return "accuracy"
    if collected.task.output == "loglikelihood_rolling":
        return "ln p per byte"
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


def _power(difference: float | None, comparisons: Sequence[Compared]) -> str | None:
    """What would detect `difference`, a line for each comparison between what the user named."""
    if difference is None:
        return None
    if not comparisons:
        return "--power speaks of comparisons, and there is none here: name several --shots, --template or --model"
    shown = [each for each in comparisons if each.primary] or comparisons
    return "\n".join(
        f"{each.after} against {each.before}: {power_sentence(power_of(each.comparison), difference)}" for each in shown
    )
