"""Answers → statistics: scores with intervals, and significant differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..base.fields import finite
from .choosing import Chosen, choose
from .comparisons import Family, PairedComparison, compare_pairs, families, pairs_of
from .eval_run import EvalRun
from .power import Planned, planned_power, power_of, power_sentence
from .provenance import Provenance
from .requirements import JudgedRequirement, Requirement, judge, required_pairs
from .result_rows import Choice, ResultRow, row_of
from .results import Collected, ConditionResult, Cost, Notes
from .statistics import majority_accuracy
from .task import Item


@dataclass(frozen=True)
class ScoredRow:
    """A scored row of the data; its digest identifies the same row in another evaluation."""

    digest: str
    label: str
    group: str | None


@dataclass(frozen=True)
class Result:
    """The result of an evaluation. `table` and `seeds_table` are flat rows for pandas."""

    task: str
    metric: str
    items: int
    groups: int | None
    rows: tuple[ResultRow, ...]
    comparisons: tuple[PairedComparison, ...]
    majority: float | None
    chosen: Chosen | None
    power: str | None
    costs: tuple[Cost, ...]
    notes: Notes
    seconds: float
    read: int
    scored_rows: tuple[ScoredRow, ...]  # in the order of the scores
    families: tuple[Family, ...] = ()  # how the comparisons are corrected
    requirements: tuple[JudgedRequirement, ...] = ()
    provenance: Provenance | None = None

    def to_dict(self) -> dict[str, Any]:
        """The complete result, for JSON; infinities (an error from one item) are None."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def table(self) -> list[dict[str, Any]]:
        """A row per configuration: `pandas.DataFrame(result.table())`."""
        return [
            self._named(row)
            | {
                self.metric: row.score.value, "standard_error": row.score.standard_error, "low": row.score.low,
                "high": row.score.high, "items": row.score.count, "lowest": row.lowest, "highest": row.highest,
            }
            for row in self.rows
        ]  # fmt: skip

    def seeds_table(self) -> list[dict[str, Any]]:
        """A row per few-shot seed and permutation; `effective_shots`: mean number of shots in the prompts."""
        return [
            self._named(row)
            | {
                "fewshot_seed": own.fewshot_seed, "permutation": own.permutation, self.metric: own.score,
                "effective_shots": own.shots,
            }
            for row in self.rows
            for own in row.per_seed
        ]  # fmt: skip

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the table of scores."""
        from .plots import result_bundle

        return result_bundle(self)

    def _named(self, row: ResultRow) -> dict[str, Any]:
        return {"task": self.task} | dict(zip(("model", "template", "shots", "variant"), row.choice, strict=True))


def summarise(
    collected: Collected, seed: int = 0, power: float | None = None, requirements: Sequence[Requirement] = ()
) -> Result:
    """The statistics of an evaluation. `power` is a difference to detect; `requirements` are judged."""
    units = _units(collected.items)
    by_choice: dict[Choice, list[ConditionResult]] = {}
    for result in collected.conditions:
        by_choice.setdefault(result.condition.choice, []).append(result)
    baselines = _baselines(by_choice, collected.calibrate)
    groups = units if len(set(units)) < len(units) else None
    rows = tuple(
        row_of(choice, results, groups, collected.shared_shots, choice in baselines)
        for choice, results in by_choice.items()
    )
    pairs = pairs_of(list(by_choice), baselines, required_pairs(requirements))
    comparisons = compare_pairs(pairs, rows, groups)
    return Result(
        task=collected.task.name,
        metric=collected.task.scorers[0].name if collected.task.scorers else "accuracy",
        items=len(collected.items),
        groups=len(set(units)) if groups is not None else None,
        rows=rows,
        comparisons=comparisons,
        majority=_majority(collected),
        chosen=choose(rows, units, seed),
        power=_power(power, comparisons),
        costs=collected.costs,
        notes=collected.notes,
        seconds=collected.seconds,
        read=collected.read,
        scored_rows=tuple(ScoredRow(item.digest, item.label, item.group) for item in collected.items),
        families=families(comparisons),
        requirements=judge(requirements, rows, dict(zip(pairs, comparisons, strict=True)), groups),
    )


def planned(run: EvalRun, requirements: Sequence[Requirement], difference: float) -> Planned:
    """Whether the evaluation could detect `difference`, before the run, under stated assumptions."""
    conditions, units = run.conditions(), _units(run.items)
    choices = list(dict.fromkeys(condition.choice for condition in conditions))
    pairs = pairs_of(choices, _baselines(choices, run.config.calibrate), required_pairs(requirements))
    groups, seeds = len(set(units)), 1 + max(condition.fewshot_seed for condition in conditions)
    one_set = seeds == 1 and max(run.design.shots) > 0 and run.design.shared_shots
    grouped = groups if groups < len(units) else None
    return planned_power(difference, len(units), grouped, seeds, sum(pairs.values()), one_set)


def _units(items: Sequence[Item]) -> list[str]:
    """The independent units: each item's group, or the item itself."""
    return [item.label if item.group is None else f"group {item.group}" for item in items]


def _baselines(choices: Iterable[Choice], calibrate: Sequence[str]) -> set[Choice]:
    """The default baselines: shots with random labels, calibrated zero-shot."""
    return {choice for choice in choices if choice[3] not in ("plain", *calibrate)}


def _majority(collected: Collected) -> float | None:
    """Accuracy of always answering with the pool's (or the items') most frequent label."""
    task = collected.task
    if task.output != "multiple_choice":
        return None
    gold = [task.format.gold(item.values) for item in collected.items]
    return majority_accuracy([task.format.gold(shot.values) for shot in task.fewshot_pool] or gold, gold)


def _power(difference: float | None, comparisons: Sequence[PairedComparison]) -> str | None:
    """What would detect `difference`, a line for each comparison between configurations the user named."""
    if difference is None:
        return None
    if not comparisons:
        return "--power needs a comparison, and there is none: name several --shots, --template or --model"
    shown = [pair for pair in comparisons if pair.primary] or comparisons
    return "\n".join(
        f"{pair.after} against {pair.before}: {power_sentence(power_of(pair.comparison), difference)}" for pair in shown
    )
