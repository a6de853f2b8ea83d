"""nextword plan laws: published scaling laws, and fits to your own runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from ..base import UsageError, units
from ..plan import Optimum, optima
from ..plan.fit_methods import Method
from ..plan.laws import LAWS
from ._sections import Section, emit, formulas, line
from ._table import plain_table
from .plan_laws_fits import Asked, print_fits
from .plan_options import FLOPS, WholeNumber, output_options

_BUDGETS = (1e19, 1e21, 5.76e23)


class Range(click.ParamType[tuple[float, float]]):
    """Two losses such as 1.5,2.1, or one."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            ends = [float(part) for part in str(value).split(",")]
        except ValueError:
            ends = []
        if len(ends) not in (1, 2) or not 0 <= ends[0] <= ends[-1] < 100:
            raise UsageError(f"--irreducible {str(value)!r}: give a loss, or two in order, such as 1.5,2.1")
        return ends[0], ends[-1]


@click.command(name="laws")
@click.option("--data", type=click.Path(path_type=Path), default=None, metavar="RUNS",
              help="A folder of runs of `nextword train`, or a CSV: loss (or bpb) and two of parameters, tokens, flops;"
              " or the optima of budgets.")  # fmt: skip
@click.option(
    "--subset", default="", metavar="NAME", help="Rows of the CSV to use, by its column subset or experiment."
)
@click.option("--kind", default="", metavar="KIND", help="Only runs of this kind: transformer, lstm, ...")
@click.option("--irreducible", type=Range(), default=None, metavar="RANGE",
              help="Range of the frontier's E. Default: 1.5,2.1 nats a token or .45,.75 bits a byte.")  # fmt: skip
@click.option("--method", type=click.Choice([*get_args(Method), "both"]), default="both", show_default=True)
@click.option(
    "--drop-highest", type=WholeNumber(0, 1 << 24), default=0, metavar="N", help="Leave out the N highest losses."
)
@click.option("--bootstrap", type=WholeNumber(0, 5000), default=200, show_default=True, metavar="N",
              help="Bootstrap fits of a law for its intervals; ten times as many of parabolas and lines.")  # fmt: skip
@click.option("--seed", type=WholeNumber(0, 1 << 32), default=0, show_default=True, metavar="N",
              help="Seed of the bootstrap.")  # fmt: skip
@click.option("--at", "budgets", type=FLOPS, multiple=True, metavar="C", help="Budgets to predict for. Repeatable.")
@output_options
def command(
    data: Path | None, subset: str, kind: str, irreducible: tuple[float, float] | None, method: str, drop_highest: int,
    bootstrap: int, seed: int, budgets: tuple[float, ...], explain: bool, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """The published laws and their optima; with --data what your own runs say.

    Runs at equal FLOPs give the best size of each budget, the exponents of size and data, and the frontier of the loss.
    To any runs L = E + A/N^α + B/D^β is fitted in two ways: Huber loss of log-sum-exp (Hoffmann et al. 2022, approach
    3), and non-negative least squares inside a search over the two exponents. Intervals are bootstrapped; constants
    the runs do not determine are not printed.

    \b
    Examples:
      nextword plan laws --at 1e21
      nextword plan laws --data runs.csv --at 1e20 --at 1e22 --plot law.svg
      nextword plan laws --data runs/
    """
    if data is not None:
        asked = Asked(method, drop_highest, bootstrap, seed, budgets, irreducible)
        print_fits(data, subset, kind, asked, explain=explain, as_json=as_json, plot=plot)
        return
    if plot is not None:
        raise UsageError("--plot draws a fit; give the runs with --data")
    rows = [optima(budget) for budget in budgets or _BUDGETS]
    result = {"laws": list(LAWS.values()), "optima": [optimum for row in rows for optimum in row]}
    emit(result, lambda: _published(rows), as_json=as_json, explain=explain)


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
