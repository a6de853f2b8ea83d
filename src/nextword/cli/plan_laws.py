"""nextword plan laws: published scaling laws, and fits to runs of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, units
from .plan_options import FLOPS, WholeNumber, output_options

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import LawFit, Runs
    from ..plan.fitting import Interval

_QUIET_SECONDS = 5.0  # between lines of progress
_BUDGETS = (1e19, 1e21, 5.76e23)
_SYMBOLS = {"E": "E", "A": "A", "B": "B", "alpha": "α", "beta": "β", "a": "a = β/(α+β)"}


@click.command(name="laws")
@click.option("--data", type=click.Path(path_type=Path), default=None, metavar="RUNS",
              help="A folder of runs of `nextword train`, or a CSV: parameters, loss, tokens or flops.")  # fmt: skip
@click.option("--method", type=click.Choice(["huber", "nnls", "both"]), default="both", show_default=True)
@click.option(
    "--drop-highest", type=WholeNumber(0, 1 << 24), default=0, metavar="N", help="Leave out the N highest losses."
)
@click.option("--bootstrap", type=WholeNumber(0, 5000), default=200, show_default=True, metavar="N",
              help="Resampled fits behind the intervals.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the resampling.")
@click.option("--at", "budgets", type=FLOPS, multiple=True, metavar="C", help="Budgets to predict for. Repeatable.")
@output_options
def command(
    data: Path | None, method: str, drop_highest: int, bootstrap: int, seed: int, budgets: tuple[float, ...],
    explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """The published laws and their optima; with --data a law fitted to your runs.

    Two fits: Huber loss of log-sum-exp (Hoffmann et al. 2022, approach 3), and non-negative least squares inside a
    search of the two powers. Intervals are of resampled runs; constants that the runs do not pin down are not printed.

    \b
    Examples:
      nextword plan laws --at 1e21
      nextword plan laws --data runs.csv --at 1e20 --at 1e22 --plot law.svg
      nextword plan laws --data runs/
    """
    if data is None:
        if plot is not None:
            raise UsageError("--plot draws a fit; give the runs with --data")
        _published(budgets or _BUDGETS, explain, as_json)
        return
    from ..plan.fitting import believed, fit_law
    from ..plan.runs import read_runs

    runs = read_runs(data).without_highest(drop_highest)
    _say_skipped(runs)
    methods = ("huber", "nnls") if method == "both" else (method,)
    say = _progress(len(runs))
    fits = [fit_law(runs, each, bootstrap=bootstrap, seed=seed, progress=say) for each in methods]  # type: ignore[arg-type]
    best, why = believed(fits)
    at = budgets or (max(runs.flops), 10 * max(runs.flops))
    if as_json:
        from ._console import emit_json

        emit_json(
            {
                "runs": len(runs),
                "fits": [_fit_json(fit, at) for fit in fits],
                "believe": {"method": best.method, "why": why},
            }
        )
    else:
        from ._console import output

        for fit in fits:
            _print_fit(fit, at, output())
        output().print(f"believe {best.method}: {why}", style="bold", highlight=False)
        if explain:
            _explain(output())
    if plot is not None:
        from ..plan.pictures import draw_law

        draw_law(best, plot)


def _say_skipped(runs: Runs) -> None:
    from ._console import messages

    for skipped in runs.skipped:
        messages().print(f"skipped: {skipped}", style="dim")


def _progress(runs: int) -> Callable[[str], None]:
    """Says on standard error what takes long, and of how many runs what is."""
    import time

    from ..plan.fitting import MOST_RUNS
    from ._console import messages

    if runs > MOST_RUNS:
        messages().print(
            f"{runs:,} runs: the law is fitted to all; starting points, intervals (narrowed by the root of the ratio)"
            f" and cross-validation are of {MOST_RUNS:,} drawn at random",
            style="dim",
        )
    spoke = time.monotonic()

    def say(what: str) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > _QUIET_SECONDS:
            spoke = time.monotonic()
            messages().print(what, style="dim")

    return say


def _published(budgets: tuple[float, ...], explain: bool, as_json: bool) -> None:
    from ..plan.laws import LAWS, optima

    if as_json:
        from dataclasses import asdict

        from ._console import emit_json
        from .plan_tables import figures_json

        emit_json(
            {
                "laws": [asdict(law) for law in LAWS.values()],
                "units": {"N": "parameters", "D": "tokens", "C": "FLOPs", "loss": "nats/token"},
                "optima": [
                    {"law": each.law, "C": budget, "N": each.parameters, "D": each.tokens, "loss": each.loss,
                     "figures": figures_json(each.figures), "note": each.note or None}
                    for budget in budgets
                    for each in optima(budget)
                ],
            }
        )  # fmt: skip
        return
    from ._console import output
    from .plan_tables import explain as explain_figures
    from .plan_tables import plain_table

    console = output()
    console.print("L(N, D) = E + A / N^α + B / D^β, nats a token\n", style="bold")
    table = plain_table("law", "E", "A", "B", "α", "β")
    for law in LAWS.values():
        values = (law.E, law.A, law.B, law.alpha, law.beta)
        table.add_row(law.name, *(f"{value:.5g}" for value in values))
    console.print(table)
    for law in LAWS.values():
        console.print(f"{law.name}: {law.source}", style="dim")
    console.print()
    count = len(budgets)
    table = plain_table("optimum", *(f"N at {budget:.3g}" for budget in budgets), "tokens a parameter",
                        least=((count + 1,), *((place,) for place in range(2, count))))  # fmt: skip
    rows = [optima(budget) for budget in budgets]
    for column in zip(*rows, strict=True):
        sizes = [units.format_count(each.parameters) for each in column]
        table.add_row(column[0].law, *sizes, f"{column[-1].ratio:.3g} at the last")
    console.print(table)
    if explain:
        console.print()
        for each in rows[-1]:
            explain_figures(f"{each.law} {each.note}".strip(), (*each.figures, *each.loss_parts), console)


def _print_fit(fit: LawFit, budgets: tuple[float, ...], console: Console) -> None:
    from ..plan.fitting import optimal_size, outlier_remark, power_of_size
    from ..plan.laws import optimum
    from .plan_tables import plain_table

    names = {"huber": "Huber loss of log-sum-exp", "nnls": "non-negative least squares and a search of α, β"}
    console.print(f"{names[fit.method]}: {len(fit.runs)} runs, objective {fit.objective:.8f}", style="bold")
    table = plain_table("", "value", "95% from", "to")
    intervals = fit.intervals
    for name, symbol in _SYMBOLS.items():
        value = power_of_size(fit.law) if name == "a" else getattr(fit.law, name)
        if name in fit.unidentified:
            table.add_row(symbol, "not identified", "", "")
            continue
        low, high = (f"{end:.5g}" if fit.draws else "" for end in (intervals[name].low, intervals[name].high))
        table.add_row(symbol, f"{value:.5g}", low, high)
    console.print(table)
    for reason in dict.fromkeys(fit.unidentified.values()):
        console.print(f"! {reason}", style="yellow")
    if not fit.unidentified:
        table = plain_table("C", "N optimal", "95%", "D/N", "95%", "loss", "95%", least=((4,), (2,), (6,)))
        for budget in budgets:
            best = optimum(budget, fit.law)
            size, ratio = fit.interval(optimal_size(budget)), fit.interval(lambda law, c=budget: optimum(c, law).ratio)  # type: ignore[misc]
            loss = fit.interval(lambda law, c=budget: optimum(c, law).loss)  # type: ignore[misc]
            table.add_row(
                f"{budget:.3g}", units.format_count(best.parameters), _span(size, units.format_count),
                f"{best.ratio:.3g}", _span(ratio, "{:.3g}".format), f"{best.loss:.4f}", _span(loss, "{:.4f}".format),
            )  # fmt: skip
        console.print(table)
    for remark in outlier_remark(fit):
        console.print(f"! {remark}", style="yellow")
    if fit.held_out is not None:
        held = fit.held_out
        console.print(
            f"left out: the {held.runs} runs above {held.least_flops:.3g} FLOPs are predicted {held.bias:+.2%} on"
            f" average, {held.rms:.2%} root mean square; cross-validated over {held.folds} folds, {held.ahead_rms:.2%}",
            style="dim",
        )
    console.print()


def _span(interval: Interval, shown: Callable[[float], str]) -> str:
    """An interval as text; empty where nothing was resampled (--bootstrap 0)."""
    return f"{shown(interval.low)} – {shown(interval.high)}" if interval.low <= interval.high else ""


def _explain(console: Console) -> None:
    for line in (
        "huber: min over (a, b, e, α, β) of Σ Huber_1e-3(LSE(a − α ln N, b − β ln D, e) − ln L);"
        " E, A, B = exp(e, a, b). Starts from Hoffmann et al.'s grid, BFGS. Hoffmann et al. 2022, 2203.15556,"
        " eq. 3 and appendix D.2",
        "nnls: for each (α, β) the non-negative E, A, B of least relative squares; Nelder-Mead over (α, β)",
        "N optimal = G (C/6)^(β/(α+β)), G = (αA/βB)^(1/(α+β)); D = C/(6N). Hoffmann et al. 2022, eq. 4",
        "intervals: 2.5% to 97.5% of fits to runs drawn with replacement",
        "believe: of the fits whose constants are identified the one with the least error in cross-validation: the"
        " tenths of the runs from 60% of them on, by compute, each predicted by a fit to all runs of less compute",
    ):
        console.print(line, style="dim")


def _fit_json(fit: LawFit, budgets: tuple[float, ...]) -> dict[str, Any]:
    from dataclasses import asdict

    from ..plan.fitting import NAMES, optimal_size, outlier_remark
    from ..plan.laws import optimum

    known = {name: None if name in fit.unidentified else getattr(fit.law, name) for name in NAMES}
    return {
        "method": fit.method,
        "objective": fit.objective,
        "constants": known,
        "intervals": {
            name: asdict(interval) for name, interval in fit.intervals.items() if name not in fit.unidentified
        },
        "level": 0.95,
        "not_identified": fit.unidentified,
        "remarks": outlier_remark(fit),
        "units": {"N": "parameters", "D": "tokens", "C": "FLOPs", "loss": "nats/token"},
        "optima": []
        if fit.unidentified
        else [
            {
                "C": budget,
                "N": optimum(budget, fit.law).parameters,
                "N_interval": asdict(fit.interval(optimal_size(budget))),
                "D": optimum(budget, fit.law).tokens,
                "ratio_interval": asdict(fit.interval(lambda law, c=budget: optimum(c, law).ratio)),  # type: ignore[misc]
                "loss": optimum(budget, fit.law).loss,
                "loss_interval": asdict(fit.interval(lambda law, c=budget: optimum(c, law).loss)),  # type: ignore[misc]
            }
            for budget in budgets
        ],
        "held_out": asdict(fit.held_out) if fit.held_out else None,
    }
