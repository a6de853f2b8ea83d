"""nextword plan laws: published scaling laws, and fits to your own runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from ..base import UsageError, units
from ..plan import Optimum, fit_law, optima, read_runs
from ..plan.figure import plain
from ..plan.fit_methods import MOST_RUNS, Method
from ..plan.fitting import Interval, LawFit, believed, outlier_remark
from ..plan.laws import LAWS
from ..plots import save
from ._console import messages
from ._sections import Section, emit, formulas, line, warning
from ._table import plain_table
from .plan_options import FLOPS, WholeNumber, output_options

_QUIET_SECONDS = 5.0  # between progress lines
_BUDGETS = (1e19, 1e21, 5.76e23)
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


@click.command(name="laws")
@click.option("--data", type=click.Path(path_type=Path), default=None, metavar="RUNS",
              help="A folder of runs of `nextword train`, or a CSV: parameters, loss, tokens or flops.")  # fmt: skip
@click.option("--method", type=click.Choice([*get_args(Method), "both"]), default="both", show_default=True)
@click.option(
    "--drop-highest", type=WholeNumber(0, 1 << 24), default=0, metavar="N", help="Leave out the N highest losses."
)
@click.option("--bootstrap", type=WholeNumber(0, 5000), default=200, show_default=True, metavar="N",
              help="Bootstrap fits for the intervals.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the bootstrap.")
@click.option("--at", "budgets", type=FLOPS, multiple=True, metavar="C", help="Budgets to predict for. Repeatable.")
@output_options
def command(
    data: Path | None, method: str, drop_highest: int, bootstrap: int, seed: int, budgets: tuple[float, ...],
    explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """The published laws and their optima; with --data a law fitted to your runs.

    Two fits: Huber loss of log-sum-exp (Hoffmann et al. 2022, approach 3), and non-negative least squares inside a
    search over the two exponents. Intervals are bootstrapped; constants the runs do not determine are not printed.

    \b
    Examples:
      nextword plan laws --at 1e21
      nextword plan laws --data runs.csv --at 1e20 --at 1e22 --plot law.svg
      nextword plan laws --data runs/
    """
    if data is None:
        if plot is not None:
            raise UsageError("--plot draws a fit; give the runs with --data")
        rows = [optima(budget) for budget in budgets or _BUDGETS]
        result = {"laws": list(LAWS.values()), "optima": [optimum for row in rows for optimum in row]}
        emit(result, lambda: _published(rows), as_json=as_json, explain=explain)
        return
    runs = read_runs(data).without_highest(drop_highest)
    for skipped in runs.skipped:
        messages().print(f"skipped: {skipped}", style="dim", soft_wrap=True)
    methods = get_args(Method) if method == "both" else (method,)
    log = _progress(len(runs))
    fits = [fit_law(runs, method, bootstrap=bootstrap, seed=seed, progress=log) for method in methods]
    best, why = believed(fits)
    at = budgets or (max(runs.flops), 10 * max(runs.flops))
    result = {
        "runs": len(runs),
        "fits": [_fit_json(fit, at) for fit in fits],
        "believe": {"method": best.method, "why": why},
    }
    emit(result, lambda: _fitted(fits, at, best, why, explain), as_json=as_json, explain=explain)
    if plot is not None:
        from ..plan.plots import law_figure

        save(law_figure(best), plot)


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


def _published(rows: Sequence[tuple[Optimum, ...]]) -> Iterator[Section]:
    yield line("L(N, D) = E + A / N^α + B / D^β, nats a token\n", "bold")
    table = plain_table("law", "E", "A", "B", "α", "β")
    for law in LAWS.values():
        table.add_row(law.name, *(f"{value:.5g}" for value in (law.E, law.A, law.B, law.alpha, law.beta)))
    yield Section(table)
    for law in LAWS.values():
        yield line(f"{law.name}: {law.source}", "dim")
    yield line("")
    count = len(rows)
    table = plain_table("optimum", *(f"N at {row[0].budget:.3g}" for row in rows), "tokens a parameter",
                        least=((count + 1,), *((column,) for column in range(2, count))))  # fmt: skip
    for column in zip(*rows, strict=True):
        sizes = [units.format_count(optimum.parameters) for optimum in column]
        table.add_row(column[0].law, *sizes, f"{column[-1].ratio:.3g} at the last")
    yield Section(table)
    for optimum in rows[-1]:
        yield formulas(f"{optimum.law} {optimum.note}".strip(), (*optimum.figures, *optimum.loss_parts))


def _fitted(
    fits: Sequence[LawFit], budgets: Sequence[float], best: LawFit, why: str, explain: bool
) -> Iterator[Section]:
    for fit in fits:
        yield from _fit(fit, budgets)
    yield line(f"believe {best.method}: {why}", "bold")
    if explain:
        yield from (line(text, "dim") for text in _EXPLAINED)


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
    yield from map(warning, outlier_remark(fit))
    if (held := fit.held_out) is not None:
        yield line(
            f"left out: the {held.runs} runs above {held.least_flops:.3g} FLOPs are predicted {held.bias:+.2%} on"
            f" average, {held.rms:.2%} root mean square; cross-validated over {held.folds} folds, {held.ahead_rms:.2%}",
            "dim",
        )
    yield line("")


def _fitted_optima(fit: LawFit, budgets: Sequence[float]) -> Section:
    table = plain_table("C", "N optimal", "95%", "D/N", "95%", "loss", "95%", least=((4,), (2,), (6,)))
    for budget in budgets:
        fitted = fit.at(budget)
        best = fitted.optimum
        table.add_row(
            f"{budget:.3g}", units.format_count(best.parameters), _span(fitted.parameters, units.format_count),
            f"{best.ratio:.3g}", _span(fitted.ratio, "{:.3g}".format), f"{best.loss:.4f}",
            _span(fitted.loss, "{:.4f}".format),
        )  # fmt: skip
    return Section(table)


def _span(interval: Interval, shown: Callable[[float], str]) -> str:
    """An interval as text; empty without a bootstrap (--bootstrap 0)."""
    return f"{shown(interval.low)} – {shown(interval.high)}" if interval.low <= interval.high else ""


def _fit_json(fit: LawFit, budgets: Sequence[float]) -> dict[str, Any]:
    return {
        "method": fit.method,
        "objective": fit.objective,
        "constants": fit.constants,
        "intervals": {name: fit.intervals[name] for name in fit.constants},
        "level": 0.95,
        "not_identified": fit.unidentified,
        "remarks": outlier_remark(fit),
        "optima": [] if fit.unidentified else [plain(fit.at(budget)) for budget in budgets],
        "held_out": fit.held_out,
    }
