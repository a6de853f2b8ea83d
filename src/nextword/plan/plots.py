"""Plans as figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .. import plots
from ..base.units import format_bytes, format_count
from ..plots import Spec
from ..plots.scaling import IsoFlop, Line
from ..plots.sweep import Budget
from .budget import BudgetPlan
from .fit_search import Diagnosis
from .fitting import LawFit
from .hardware import Device
from .laws import Law, law, optimum
from .runs import Runs
from .training import Memory

if TYPE_CHECKING:
    from .isoflops import Estimate, Minimum, Scaling
    from .sweep_checks import LeftOut

SIZES = {"M": "M: FLOPs a token / 6", "N": "parameters"}

_REMEDIES = 6
_REACH = 100.0  # of the loss surface around the optimum, either way
_LEVELS = 14  # lines of equal loss
_NEAR = 0.15  # in log FLOPs; runs shown with an IsoFLOP curve
_APART = 1.0  # in log FLOPs, between two such curves
_CURVES = 5
_STEPS = 60  # points of a curve


def memory_figure(memory: Memory, devices: Sequence[Device], title: str) -> Spec:
    """Memory as one stacked bar against each device's line."""
    return plots.memory([("", _parts(memory))], _sizes(devices), f"{title}: {format_bytes(memory.total)}")


def remedies_figure(plan: Diagnosis, title: str) -> Spec:
    """The requested run and its remedies, as stacked bars against the device's line."""
    bars = [("as requested", _parts(plan.memory))]
    for remedy in plan.remedies[:_REMEDIES]:
        result = "" if remedy.same_result else ", changes the result"
        bars.append((f"{remedy.name}\n{remedy.time:.2f}x the time{result}", _parts(remedy.memory)))
    return plots.memory(bars, _sizes([plan.device]), title)


def _parts(memory: Memory) -> dict[str, float]:
    return {part.name: memory.part(part.name) for part in memory.parts}


def _sizes(devices: Sequence[Device]) -> dict[str, float]:
    return {device.name: device.memory for device in devices}


def surface_figure(plan: BudgetPlan) -> Spec:
    """The loss over size and data, lines of equal budget, and every law's optimum."""
    chosen, best = law(plan.best.law), plan.best
    sizes, tokens = ((own / _REACH, own * _REACH) for own in (best.parameters, best.tokens))
    budgets = [best.budget * factor for factor in (0.1, 1.0, 10.0)]
    limit = None
    if plan.limited is not None:
        unique = plan.limited.unique
        text = f"{format_count(unique)} different tokens; above the line they repeat"
        limit = Line(text, [(size, unique) for size in sizes])
    return plots.loss_surface(
        list(_contours(chosen, sizes, tokens)),
        [Line(f"{own:.2g} FLOPs", [(n, own / (6 * n)) for n in _spaced(*sizes)]) for own in budgets],
        [Line(own.law, [(own.parameters, own.tokens)]) for own in plan.optima],
        (plan.choice.parameters, plan.choice.tokens), sizes, tokens,
        f"loss by {chosen.name} if no token repeats, nats a token", limit,
    )  # fmt: skip


def _contours(by: Law, sizes: tuple[float, float], tokens: tuple[float, float]) -> Iterator[Line]:
    """Lines of equal loss, whose excess over the irreducible loss grows by equal ratios."""
    lowest, highest = by.loss(sizes[1], tokens[1]) - by.E, by.loss(sizes[0], tokens[0]) - by.E
    for excess in _spaced(lowest, highest, _LEVELS + 2)[1:-1]:
        loss = round(by.E + excess, 2)
        points = [(n, by.tokens_for(loss, n)) for n in _spaced(*sizes, 2 * _STEPS)]
        yield Line(f"{loss:.2f}", [(n, d) for n, d in points if tokens[0] / 2 < d < tokens[1] * 2])


def _spaced(low: float, high: float, count: int = _STEPS) -> list[float]:
    """Numbers from `low` to `high` with equal ratios."""
    return [low * (high / low) ** (n / (count - 1)) for n in range(count)]


def law_figure(fit: LawFit) -> Spec:
    """Loss against compute with the frontier, and IsoFLOP curves: loss against size at a few budgets."""
    runs = list(zip(fit.runs.parameters, fit.runs.flops, fit.runs.losses, strict=True))
    isoflops = [_isoflop(fit, budget) for budget in _busiest(fit.runs.flops)]
    title = f"{len(fit.runs):,} runs and the law fitted to them ({fit.method})"
    return plots.law_fit(runs, _frontier(fit), isoflops, title, fit.runs.unit)


def _frontier(fit: LawFit) -> list[tuple[float, float, float, float]]:
    """FLOPs, and the lowest loss for them with its interval."""
    import numpy as np

    rows = []
    for budget in _spaced(min(fit.runs.flops), 10 * max(fit.runs.flops)):
        loss = optimum(budget, fit.law).loss
        draws = [optimum(budget, draw).loss for draw in fit.draws] or [loss]
        low, high = np.quantile(draws, [0.025, 0.975])
        rows.append((budget, loss, float(low), float(high)))
    return rows


def _busiest(flops: Sequence[float]) -> list[float]:
    """A few well separated budgets with the most runs nearby."""
    import numpy as np

    logs = np.log(np.asarray(flops))
    distance = np.abs(logs[:, None] - logs)
    near = (distance < _NEAR).sum(axis=1)
    chosen: list[float] = []
    while len(chosen) < _CURVES and near.max() > 0:
        row = int(near.argmax())
        chosen.append(float(flops[row]))
        near[distance[row] < _APART] = 0
    return sorted(chosen)


def _isoflop(fit: LawFit, budget: float) -> IsoFlop:
    best = optimum(budget, fit.law)
    sizes = _spaced(best.parameters / 12, best.parameters * 12)
    near = [
        (n, loss)
        for n, flops, loss in zip(fit.runs.parameters, fit.runs.flops, fit.runs.losses, strict=True)
        if abs(math.log(flops / budget)) < _NEAR
    ]
    curve = [(n, fit.law.loss(n, budget / (6 * n))) for n in sizes]
    return IsoFlop(f"{budget:.1e}: {format_count(best.parameters)}", curve, (best.parameters, best.loss), near)


def sweep_figure(runs: Runs, found: Scaling, left_out: LeftOut | None = None) -> Spec:
    """Parabolas of runs at equal FLOPs, the best sizes, and the frontier with the budget that it predicted."""
    from .isoflops import budgets, near_minimum

    rows = [near_minimum(runs, group) for group in budgets(runs)]
    drawn = [_budget(runs, own, minimum) for own, minimum in zip(rows, found.minima, strict=True)]
    flops = [minimum.flops for minimum in found.minima]
    line = [found.predict(budget) for budget in _spaced(flops[0], 10 * flops[-1])]
    sizes = [_band(each.flops, each.sizes[found.size]) for each in line if found.size in each.sizes]
    frontier = [_band(each.flops, each.loss) for each in line if each.loss is not None]
    ring = _band(left_out.flops, left_out.predicted) if left_out else None
    title = f"{len(runs):,} runs in {len(flops)} budget{'s' * (len(flops) > 1)}"
    return plots.sweep(drawn, sizes, frontier, ring, title, SIZES[found.size], found.unit)


def _budget(runs: Runs, rows: Sequence[int], minimum: Minimum) -> Budget:
    points = [(runs.parameters[row], runs.losses[row]) for row in rows]
    if minimum.problem:
        return Budget(minimum.flops, points)
    ends = [size for size, _ in points]
    curve = [(size, minimum.at(size)) for size in _spaced(min(ends), max(ends))]
    interval = minimum.size_interval
    return Budget(minimum.flops, points, curve, (minimum.size, minimum.loss), (interval.low, interval.high))


def _band(flops: float, estimate: Estimate) -> tuple[float, float, float, float]:
    return flops, estimate.value, estimate.interval.low, estimate.interval.high
