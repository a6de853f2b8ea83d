"""Plans as figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base.units import format_bytes, format_count, format_flops, format_seconds
from ..plots import Spec, mime_bundle
from ..plots.memory import memory as memory_bars
from ..plots.scaling import IsoFlop, Line, law_fit, loss_surface
from ..plots.sweep import Band, Budget, Residual, curves, surface, sweep
from .budget import BudgetPlan
from .fit_search import Diagnosis
from .fitting import LawFit
from .hardware import Device
from .laws import Law, law, optimum
from .runs import Optima, Runs
from .serving import InferencePlan
from .training import Memory, TrainingPlan

if TYPE_CHECKING:
    from .isoflops import Estimate, Minimum, Scaling
    from .sweep_checks import LeftOut

_SIZES = {"M": "M: FLOPs a token / 6", "N": "parameters", "D": "tokens"}
_REMEDIES = 6
_REACH = 100.0  # of the loss surface around the optimum, either way
_LEVELS = 14  # lines of equal loss
_NEAR = 0.15  # in log FLOPs; runs shown with an IsoFLOP curve
_APART = 1.0  # in log FLOPs, between two such curves
_CURVES = 5
_STEPS = 60  # points of a curve


def memory_figure(memory: Memory, devices: Sequence[Device], title: str) -> Spec:
    """Memory as one stacked bar against each device's line."""
    return memory_bars([("", _parts(memory))], _sizes(devices), f"{title}: {format_bytes(memory.total)}")


def remedies_figure(plan: Diagnosis, title: str) -> Spec:
    """The requested run and its remedies, as stacked bars against the device's line."""
    bars = [("as requested", _parts(plan.memory))]
    for remedy in plan.remedies[:_REMEDIES]:
        result = "" if remedy.same_result else ", changes the result"
        bars.append((f"{remedy.name}\n{remedy.time:.2f}x the time{result}", _parts(remedy.memory)))
    return memory_bars(bars, _sizes([plan.device]), title)


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
    return loss_surface(
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
    return law_fit(runs, _frontier(fit), isoflops, title, fit.runs.unit)


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


def sweep_figure(runs: Runs, found: Scaling, left_out: LeftOut | None = None, before: str = "") -> Spec:
    """Parabolas of runs at equal FLOPs, the best sizes, and the frontier with the budget or the run it predicted.

    `before` begins the title.
    """
    from .isoflops import budgets, near_minimum
    from .run_tables import SAME

    rows = [near_minimum(runs, group) for group in budgets(runs)]
    drawn = [_budget(runs, own, minimum) for own, minimum in zip(rows, found.minima, strict=True)]
    flops = [minimum.flops for minimum in found.minima]
    sizes, frontier = _lines(found, flops[0], flops[-1])
    ring = _band(left_out.flops, left_out.predicted) if left_out else None
    beyond = left_out is not None and left_out.flops > SAME * flops[-1]
    made = (left_out.flops, left_out.measured) if left_out and beyond else None
    title = f"{before}{len(runs):,} runs in {len(flops)} budget{'s' * (len(flops) > 1)}"
    return sweep(drawn, sizes, frontier, ring, title, _SIZES[found.size], found.unit, made)


def optima_figure(optima: Optima, found: Scaling, before: str = "") -> Spec:
    """The best sizes of a table of optima with their power of compute, and the frontier if it has losses."""
    losses = optima.losses or (math.nan,) * len(optima)
    rows = zip(optima.flops, optima.sizes[found.size], losses, strict=True)
    drawn = [Budget(flops, (), best=(size, loss), interval=(size, size)) for flops, size, loss in sorted(rows)]
    sizes, frontier = _lines(found, min(optima.flops), max(optima.flops))
    title = f"{before}optima of {len(optima)} budgets"
    return sweep(drawn, sizes, frontier, None, title, _SIZES[found.size], found.unit)


def kinds_figure(found: Mapping[str, Scaling]) -> Spec | None:
    """The frontiers of kinds of models at equal compute, through their minima; None for fewer than two."""
    lines, dots = [], []
    for kind, scaling in found.items():
        if scaling.frontier is not None and scaling.minima:
            minima = [(one.flops, one.loss) for one in scaling.minima if not one.problem]
            flops = _spaced(minima[0][0], 10 * minima[-1][0])
            lines.append(Line(kind, [(each, scaling.frontier.loss(each)) for each in flops]))
            dots.append(Line(kind, minima))
    if len(lines) < 2:
        return None
    return curves(lines, "kinds at equal compute", "FLOPs", next(iter(found.values())).unit, dots)


def residual_figure(runs: Runs, found: Scaling, by: Law, before: str = "") -> Spec:
    """Lines of equal loss by the law of a sweep's cells, and how far each run is off."""
    from .isoflops import cells

    used = set(cells(runs))
    rows = zip(runs.parameters, runs.tokens, runs.losses, strict=True)
    dots = [Residual(n, d, loss, loss / by.loss(n, d) - 1, row in used) for row, (n, d, loss) in enumerate(rows)]
    sizes, tokens = _around(runs.parameters), _around(runs.tokens)
    minima = [(minimum.size, minimum.tokens) for minimum in found.minima if not minimum.problem]
    errors = [dot.error for dot in dots if dot.fitted]
    rms = math.sqrt(sum(error**2 for error in errors) / len(errors))
    title = f"{before}L({found.size}, D) in {runs.unit}, off by {100 * rms:.2g}% rms"
    return surface(list(_contours(by, sizes, tokens)), dots, minima, title, _SIZES[found.size], sizes, tokens)


def _lines(found: Scaling, low: float, high: float) -> tuple[list[Band], list[Band]]:
    """The best sizes and the frontier, from the lowest budget to ten times the largest."""
    line = [found.predict(budget) for budget in _spaced(low, 10 * high)]
    sizes = [_band(each.flops, each.sizes[found.size]) for each in line if found.size in each.sizes]
    return sizes, [_band(each.flops, each.loss) for each in line if each.loss is not None]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The ends of some values on a logarithmic axis, with a fifth of room."""
    return min(values) / 1.2, max(values) * 1.2


def _budget(runs: Runs, rows: Sequence[int], minimum: Minimum) -> Budget:
    points = [(runs.parameters[row], runs.losses[row]) for row in rows]
    if minimum.problem:
        return Budget(minimum.flops, points)
    ends = [size for size, _ in points]
    curve = [(size, minimum.at(size)) for size in _spaced(min(ends), max(ends))]
    interval = minimum.size_interval
    return Budget(minimum.flops, points, curve, (minimum.size, minimum.loss), (interval.low, interval.high))


def _band(flops: float, estimate: Estimate) -> Band:
    return flops, estimate.value, estimate.interval.low, estimate.interval.high


# ---- for notebooks: a figure and text


def memory_bundle(memory: Memory, devices: Sequence[Device], title: str, *more: str) -> dict[str, Any]:
    """Memory by part, and against each device."""
    lines = [f"{format_bytes(value):>10}  {name}" for name, value in _parts(memory).items()]
    for device in devices:
        fits = "fits" if memory.total <= device.memory else "does not fit"
        lines.append(f"{device.title}, {format_bytes(device.memory)}: {fits}")
    text = "\n".join([f"{title}: {format_bytes(memory.total)}", *lines, *more])
    return mime_bundle(text, memory_figure(memory, devices, title))


def training_bundle(plan: TrainingPlan) -> dict[str, Any]:
    """Memory, time and price of a training run."""
    title = f"training, batch {plan.setup.batch:,} x {plan.setup.context:,}"
    price = f", {plan.cost.money.value:,.2f} $" if plan.cost.money else ""
    return memory_bundle(plan.memory, [plan.device], title, f"{format_seconds(plan.cost.seconds.value)}{price}")


def inference_bundle(plan: InferencePlan) -> dict[str, Any]:
    """Memory of a model in use."""
    title = f"in use, batch {plan.use.batch:,}, context {plan.use.context:,}"
    return memory_bundle(plan.devices[0].memory, [row.device for row in plan.devices], title)


def diagnosis_bundle(plan: Diagnosis) -> dict[str, Any]:
    """A run, and what makes it fit."""
    title = f"training on {plan.device.title}, {format_bytes(plan.device.memory)}"
    lines = [f"{format_bytes(plan.memory.total):>10}  as requested"]
    lines += [f"{format_bytes(own.memory.total):>10}  {own.name}, {own.time:.2f}x the time" for own in plan.remedies]
    return mime_bundle("\n".join([title, *lines]), remedies_figure(plan, title))


def budget_bundle(plan: BudgetPlan) -> dict[str, Any]:
    """The optimum of every law."""
    lines = [format_flops(plan.flops.value)]
    for own in plan.optima:
        size, tokens = format_count(own.parameters), format_count(own.tokens)
        lines.append(f"{own.law}: {size} parameters, {tokens} tokens, loss {own.loss:.3f}")
    return mime_bundle("\n".join([*lines, *plan.warnings]), surface_figure(plan))


def law_bundle(fit: LawFit) -> dict[str, Any]:
    """The constants, with their intervals."""
    intervals = fit.intervals if fit.draws else {}
    lines = [f"L(N, D) = E + A/N^alpha + B/D^beta, fitted to {len(fit.runs):,} runs ({fit.method})"]
    for name, value in fit.constants.items():
        ends = f" [{intervals[name].low:.4g}, {intervals[name].high:.4g}]" if name in intervals else ""
        lines.append(f"{name} = {value:.4g}{ends}")
    return mime_bundle("\n".join(lines), law_figure(fit))
