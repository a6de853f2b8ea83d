"""The law of a sweep's runs, and the prediction of one that has not been made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..base import UsageError
from ..plan import Runs, parameters
from ..plan.fitting import Interval
from ..plan.isoflops import Estimate, Scaling, isoflops
from ..plan.sweep_checks import Checks, by_filter, check
from ..spec import ModelKind
from .table import Row

COUNTS = {"N": "total", "N of matrices": "multiplying"}  # ways to count parameters, besides M


@dataclass(frozen=True)
class Forecast:
    """What a run of `flops` reaches at the best size M, in bits a byte.

    The interval holds E's range, the bootstrap and a run's noise (`fitted`), and the loss by every filter.
    """

    flops: float
    size: Estimate
    loss: float
    interval: Interval
    fitted: Interval
    filters: dict[str, float]

    @property
    def tokens(self) -> float:
        return self.flops / (6 * self.size.value)


@dataclass(frozen=True)
class KindLaw:
    """The law of one kind's finished cells."""

    kind: ModelKind
    runs: Runs
    scaling: Scaling
    seeds: float = math.nan  # relative spread of the loss over seeds; NaN: not measured

    @property
    def problem(self) -> str:
        """Why nothing can be predicted; empty if it can."""
        if self.scaling.frontier is None or self.scaling.size not in self.scaling.powers:
            return self.scaling.problem or "no budget has a minimum inside its sizes: add sizes"
        return ""

    @property
    def top(self) -> float:
        """The largest budget of the runs, FLOPs."""
        return max(self.runs.flops)

    @property
    def flat(self) -> float:
        """The ratio to the best size, either way, within which the loss is FLAT above the least."""
        ratios = [math.log(each.flat.high / each.size) for each in self.scaling.minima if not each.problem]
        return math.exp(sum(ratios) / len(ratios))

    @cached_property
    def checks(self) -> Checks:
        """What speaks against the law."""
        return check(self.runs, 10 * self.top)

    def best_size(self, flops: float) -> float:
        """The best size M for a budget, where there is no `problem`."""
        return self.scaling.powers[self.scaling.size].at(flops).value

    def at(self, flops: float) -> Forecast:
        """What a run with this many FLOPs reaches. Raises UsageError where there is a `problem`."""
        predicted = self.scaling.predict(flops)
        if self.problem or predicted.loss is None:
            raise UsageError(f"{self.kind}: {self.problem}")
        filters, loss = by_filter(self.runs, flops), predicted.loss
        losses = [loss.value, *filters.values()]
        interval = Interval(min(loss.interval.low, *losses), max(loss.interval.high, *losses))
        return Forecast(flops, predicted.sizes[self.scaling.size], loss.value, interval, loss.interval, filters)


def fit_kind(kind: ModelKind, rows: Iterable[Row]) -> KindLaw | None:
    """The law of the finished grid cells of a kind; None without any."""
    done = [row for row in rows if row.cell.kind == kind and row.status == "done"]
    runs = runs_of([row for row in done if row.cell.role == "grid"])
    if not len(runs):
        return None
    scaling, seeds = isoflops(runs), spread_over_seeds(done)
    if scaling.frontier is not None and seeds > scaling.frontier.noise:
        scaling = replace(scaling, frontier=replace(scaling.frontier, noise=seeds))
    return KindLaw(kind, runs, scaling, seeds)


def spread_over_seeds(rows: Iterable[Row]) -> float:
    """The relative standard deviation of the loss over seeds, pooled over the cells that have several; else NaN."""
    cells: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        if row.cell.role in ("grid", "seed"):
            cells.setdefault((row.cell.size, row.cell.budget), []).append(math.log(row.loss))
    several = [np.array(losses) for losses in cells.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in several)
    return (
        math.sqrt(sum(((losses - losses.mean()) ** 2).sum() for losses in several) / freedom) if several else math.nan
    )


def runs_of(rows: Sequence[Row]) -> Runs:
    """Rows as runs to fit, of sizes M, with losses in bits a byte."""
    counts = {
        name: tuple(float(getattr(parameters(row.cell.spec), attribute)) for row in rows)
        for name, attribute in COUNTS.items()
    }
    return Runs(
        tuple(row.cell.size for row in rows), tuple(float(row.cell.tokens) for row in rows),
        tuple(row.loss for row in rows), unit="bits/byte", counts=counts, kinds=tuple(row.cell.kind for row in rows),
    )  # fmt: skip


def law_json(law: KindLaw | None) -> dict[str, Any] | None:
    """The law as plain data."""
    return None if law is None else {
        "kind": law.kind, "problem": law.problem, "seeds": law.seeds, **law.scaling.to_dict()
    }  # fmt: skip
