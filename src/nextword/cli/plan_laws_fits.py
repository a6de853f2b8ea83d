"""nextword plan laws --data: laws fitted to runs, as tables and as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..base import UsageError, units
from ..base.errors import closest
from ..plan import Optima, Runs, fit_law, read_table
from ..plan.figure import plain
from ..plan.fit_methods import MOST_RUNS, Method
from ..plan.fitting import LawFit, believed, misfit_remark, outlier_remark
from ..plan.plots import kinds_figure, law_figure, optima_figure, sweep_figure
from ..plan.runs import by_kind
from ..plots import Spec, save
from ..plots.spec import stacked
from ._console import messages
from ._sections import Section, emit, line, warning
from ._table import plain_table
from .plan_isoflops import EXPLAINED as ISOFLOPS_EXPLAINED
from .plan_isoflops import check_sections, scaling_sections, span

if TYPE_CHECKING:
    from ..plan.isoflops import Estimate, Frontier, Scaling

_QUIET_SECONDS = 5.0  # between progress lines
_LINES = 10  # times as many bootstrap fits of parabolas and lines, which take no search
_SYMBOLS = {"E": "E", "A": "A", "B": "B", "alpha": "α", "beta": "β", "a": "a = β/(α+β)"}
_METHODS = {"huber": "Huber loss of log-sum-exp", "nnls": "non-negative least squares and a search of α, β"}
_EXPLAINED = (
    "huber: min over (a, b, e, α, β) of Σ Huber_1e-3(LSE(a − α ln N, b − β ln D, e) − ln L); E, A, B = exp(e, a, b)."
    " Starts from Hoffmann et al.'s grid, BFGS. Hoffmann et al. 2022, 2203.15556, eq. 3 and appendix D.2",
    "nnls: for each (α, β) the non-negative E, A, B of least relative squares; Nelder-Mead over (α, β)",
    "N optimal = G (C/6)^(β/(α+β)), G = (αA/βB)^(1/(α+β)); D = C/(6N). Hoffmann et al. 2022, eq. 4",
    "intervals: 2.5% to 97.5% of fits to runs drawn with replacement",
    "believe: of the fits whose constants are identified the one with the least error in cross-validation: the tenths"
    " of the runs from 60% of them on, by compute, each predicted by a fit to all runs of less compute",
)


@dataclass(frozen=True)
class Asked:
    """The options of a fit."""

    method: str
    drop_highest: int
    bootstrap: int
    seed: int
    budgets: tuple[float, ...]
    irreducible: tuple[float, float] | None

    def at(self, flops: Sequence[float]) -> tuple[float, ...]:
        """The budgets to predict for."""
        return self.budgets or (max(flops), 10 * max(flops))


@dataclass(frozen=True)
class Answer:
    """What the runs of one kind say: as data, as sections, as a figure with a title, and their scaling.

    `lowest` is the lowest loss of their frontier, if they have one.
    """

    result: dict[str, Any]
    sections: tuple[Section, ...]
    figure: Callable[[str], Spec]
    scaling: Scaling | None = None
    lowest: float = math.inf

    @property
    def frontier(self) -> Frontier | None:
        return self.scaling.frontier if self.scaling else None


def print_fits(
    path: Path, subset: str, kind: str, asked: Asked, *, explain: bool, as_json: bool, plot: Path | None
) -> None:
    """Fit what the table or folder at `path` holds, each kind of model by itself, and print it."""
    table = read_table(path, subset)
    for skipped in table.skipped:
        messages().print(f"skipped: {skipped}", style="dim", soft_wrap=True)
    tables = _chosen(by_kind(table), kind, path)
    answers = {name: _answer(each, asked) for name, each in tables.items()}
    figure = _figure(answers) if plot is not None else None
    emit(_result(answers), lambda: _sections(answers, explain), as_json=as_json, explain=explain)
    if plot is not None and figure is not None:
        save(figure, plot)


def _figure(answers: Mapping[str, Answer]) -> Spec:
    """The figure of one kind, or those of several and all frontiers."""
    if len(answers) == 1:
        return next(iter(answers.values())).figure("")
    if any(answer.scaling is None for answer in answers.values()):
        raise UsageError(
            f"--plot draws several kinds of runs at equal FLOPs only; choose one with --kind: {', '.join(answers)}"
        )
    parts = [answer.figure(f"{kind}: ") for kind, answer in answers.items()]
    together = kinds_figure({kind: answer.scaling for kind, answer in answers.items() if answer.scaling is not None})
    return stacked("scaling of each kind", [*parts, together] if together else parts)


def _chosen(tables: Mapping[str, Runs | Optima], kind: str, path: Path) -> Mapping[str, Runs | Optima]:
    if not kind:
        return tables
    if kind not in tables:
        known = ", ".join(filter(None, tables)) or "no column kind"
        raise UsageError(f"--kind {kind!r} is not in {path}.{closest(kind, list(tables))} It has: {known}")
    return {kind: tables[kind]}


def _answer(table: Runs | Optima, asked: Asked) -> Answer:
    if not len(table):
        raise UsageError("the table has a heading and no rows; a law takes runs")
    if isinstance(table, Optima):
        return _of_optima(table, asked)
    runs = table.without_highest(asked.drop_highest)
    from ..plan.isoflops import form_budgets

    return _of_sweep(runs, asked) if form_budgets(runs) else _of_scattered(runs, asked)


def _of_optima(optima: Optima, asked: Asked) -> Answer:
    from ..plan.isoflops import scaling_of_optima

    found = scaling_of_optima(optima, asked.irreducible, bootstrap=_LINES * asked.bootstrap, seed=asked.seed)
    at = asked.at(optima.flops)
    result = {"optima": len(optima), "isoflops": found, "predictions": [found.predict(budget) for budget in at]}
    heading = line(f"optima of {len(optima)} budgets, a row each", "bold")
    sections = (heading, *scaling_sections(found, at, max(optima.flops)))
    return Answer(result, sections, partial(optima_figure, optima, found), found, min(optima.losses, default=math.inf))


def _of_sweep(runs: Runs, asked: Asked) -> Answer:
    """Runs at equal FLOPs: minima, exponents, frontier, and a law of the runs that one may be fitted to."""
    from ..plan.isoflops import cells, isoflops
    from ..plan.sweep_checks import check

    draws = _LINES * asked.bootstrap
    found = isoflops(runs, asked.irreducible, bootstrap=draws, seed=asked.seed)
    at = asked.at(runs.flops)
    checks = check(runs, at[-1], asked.irreducible, bootstrap=draws, seed=asked.seed)
    usable = runs.take(cells(runs))
    what = (
        f"law of {len(usable)} of {len(runs)} runs, those with 3 to 300 tokens a parameter and within 10% of their"
        " budget's lowest loss"
    )
    heading = line(f"{len(runs)} runs in {len(found.minima)} budget{'s' * (len(found.minima) > 1)}", "bold")
    try:
        law = _of_scattered(usable, asked)
        fits, fitted = law.result, (
            line(f"{what}; its E is free: beyond these runs trust the frontier\n"), *law.sections)  # fmt: skip
    except UsageError as error:
        fits, fitted = {"fits": [], "believe": None}, (warning(f"no {what}: {error}"),)
    sections = (heading, *scaling_sections(found, at, max(runs.flops)), *check_sections(checks, runs.unit), line(""))
    result = {
        "runs": len(runs),
        "unit": runs.unit,
        "isoflops": found,
        "predictions": [found.predict(budget) for budget in at],
        "checks": checks,
        "law_runs": len(usable),
        "fits": fits["fits"],
        "believe": fits["believe"],
    }
    lowest = min((minimum.loss for minimum in found.minima if not minimum.problem), default=math.inf)
    draw = partial(sweep_figure, runs, found, checks.left_out)
    return Answer(result, (*sections, *fitted), draw, found, lowest)


def _of_scattered(runs: Runs, asked: Asked) -> Answer:
    """A law L(N, D) by each method."""
    methods: Sequence[Method] = get_args(Method) if asked.method == "both" else (asked.method,)
    log = _progress(len(runs))
    fits = [fit_law(runs, method, bootstrap=asked.bootstrap, seed=asked.seed, progress=log) for method in methods]
    best, why = believed(fits)
    at = asked.at(runs.flops)
    result = {
        "runs": len(runs),
        "unit": runs.unit,
        "fits": [_fit_json(fit, at) for fit in fits],
        "believe": {"method": best.method, "why": why},
    }
    sections = (section for fit in fits for section in _fit(fit, at))
    return Answer(result, (*sections, line(f"believe {best.method}: {why}", "bold")), lambda before: law_figure(best))


def _result(answers: Mapping[str, Answer]) -> dict[str, Any]:
    if len(answers) == 1:
        return next(iter(answers.values())).result
    base, loss, factors = _compared(answers)
    equal = {"than": base, "loss": loss, "factors": factors} if factors else None
    return {"kinds": {kind: answer.result for kind, answer in answers.items()}, "compute_at_equal_loss": equal}


def _sections(answers: Mapping[str, Answer], explain: bool) -> Iterator[Section]:
    for kind, answer in answers.items():
        if len(answers) > 1:
            yield line(f"{kind}\n", "bold underline")
        yield from answer.sections
        if len(answers) > 1:
            yield line("")
    base, loss, factors = _compared(answers)
    for kind, factor in factors.items():
        shown = span(factor.interval, "{:.3g}".format)
        yield line(f"{kind} takes {factor.value:.3g} times the compute of {base} to reach {loss:.4g}"
                   f"{f' (95% {shown})' if shown else ''}", "bold")  # fmt: skip
    if explain:
        swept = any(answer.frontier is not None for answer in answers.values())
        yield from (line(text, "dim") for text in (*(ISOFLOPS_EXPLAINED if swept else ()), *_EXPLAINED))


def _compared(answers: Mapping[str, Answer]) -> tuple[str, float, dict[str, Estimate]]:
    """The compute of each kind relative to the best one's, at the lowest loss that all of them have reached."""
    frontiers = {kind: answer.frontier for kind, answer in answers.items() if answer.frontier is not None}
    if len(frontiers) < 2:
        return "", math.nan, {}
    from ..plan.isoflops import compute_at_equal_loss

    loss = max(answers[kind].lowest for kind in frontiers)
    base = min(frontiers, key=lambda kind: frontiers[kind].budget_for(loss)[0])
    factors = {kind: compute_at_equal_loss(frontiers[base], frontier, loss)
               for kind, frontier in frontiers.items() if kind != base}  # fmt: skip
    return base, loss, factors


def _progress(runs: int) -> Callable[[str], None]:
    """Report slow fits on standard error, and how many runs each part uses."""
    if runs > MOST_RUNS:
        messages().print(
            f"{runs:,} runs: the law is fitted to all; starting points, intervals (narrowed by the root of the ratio)"
            f" and cross-validation are of {MOST_RUNS:,} drawn at random",
            style="dim",
        )
    last = time.monotonic()

    def log(what: str) -> None:
        nonlocal last
        if time.monotonic() - last > _QUIET_SECONDS:
            last = time.monotonic()
            messages().print(what, style="dim")

    return log


def _fit(fit: LawFit, budgets: Sequence[float]) -> Iterator[Section]:
    yield line(f"{_METHODS[fit.method]}: {len(fit.runs)} runs, objective {fit.objective:.8f}", "bold")
    table = plain_table("", "value", "95% from", "to")
    constants, intervals = fit.constants, fit.intervals
    for name, symbol in _SYMBOLS.items():
        if name in constants:
            ends = (intervals[name].low, intervals[name].high) if fit.draws else ()
            table.add_row(symbol, f"{constants[name]:.5g}", *(f"{end:.5g}" for end in ends))
        else:
            table.add_row(symbol, "not identified")
    yield Section(table)
    yield from map(warning, dict.fromkeys(fit.unidentified.values()))
    if not fit.unidentified:
        yield _fitted_optima(fit, budgets)
    yield from map(warning, (*misfit_remark(fit.rms), *outlier_remark(fit)))
    if (held := fit.held_out) is not None:
        yield line(
            f"left out: the {held.runs} runs above {held.least_flops:.3g} FLOPs are predicted {held.bias:+.2%} on"
            f" average, {held.rms:.2%} root mean square; cross-validated over {held.folds} folds, {held.ahead_rms:.2%}",
            "dim",
        )
    yield line("")


def _fitted_optima(fit: LawFit, budgets: Sequence[float]) -> Section:
    size, loss = fit.runs.symbol, f"loss, {fit.runs.unit}"
    table = plain_table("C", f"{size} optimal", "95%", f"D/{size}", "95%", loss, "95%", least=((4,), (2,), (6,)))
    for budget in budgets:
        fitted = fit.at(budget)
        best = fitted.optimum
        table.add_row(
            f"{budget:.3g}", units.format_count(best.parameters), span(fitted.parameters, units.format_count),
            f"{best.ratio:.3g}", span(fitted.ratio, "{:.3g}".format), f"{best.loss:.4f}",
            span(fitted.loss, "{:.4f}".format),
        )  # fmt: skip
    return Section(table)


def _fit_json(fit: LawFit, budgets: Sequence[float]) -> dict[str, Any]:
    return {
        "method": fit.method,
        "objective": fit.objective,
        "constants": fit.constants,
        "intervals": {name: fit.intervals[name] for name in fit.constants},
        "level": 0.95,
        "not_identified": fit.unidentified,
        "rms": fit.rms,
        "remarks": [*misfit_remark(fit.rms), *outlier_remark(fit)],
        "optima": [] if fit.unidentified else [plain(fit.at(budget)) for budget in budgets],
        "held_out": fit.held_out,
    }
