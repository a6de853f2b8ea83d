"""What speaks against a sweep's law: a budget that follows another, a prediction that fails, filters that matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..base import installed
from .fit_methods import fit_point
from .fitting import NAMES, law_of
from .isoflops import WINDOW, Estimate, budgets, cells, isoflops, rows_of
from .laws import Law
from .runs import Runs

FAR = 3  # times the other residuals: a transient
LEAST_CELLS = 8  # that a law is fitted to
_START = (0.0, 0.0, 0.0, 0.35, 0.35)  # of a fit: log E, log A, log B, α, β
_NARROW = 0.05  # of the lowest loss: another window of the parabolas
_Range = tuple[float, float] | None


@dataclass(frozen=True)
class LeftOut:
    """The largest budget, predicted by a frontier that has never seen it."""

    flops: float
    predicted: Estimate
    measured: float  # the minimum of its parabola


@dataclass(frozen=True)
class Transient:
    """A lowest budget whose runs the law of the others misses: skill not yet learned, or too few steps.

    `error` is the mean of measured / predicted - 1, `usual` the other runs' standard error; the exponents are of M.
    """

    flops: float
    error: float
    usual: float
    exponent: float
    exponent_without: float

    @property
    def text(self) -> str:
        return (
            f"transient: leave budget {self.flops:.3g} out. A law of the other budgets misses all its runs to one side,"
            f" by {self.error:+.2%} on average, and is {self.usual:.2%} off the others; without it the exponent of the"
            f" size is {self.exponent_without:.3f} instead of {self.exponent:.3f}"
        )


@dataclass(frozen=True)
class Checks:
    """All checks of a sweep. `by_filter` has the loss at `budget` by other choices of runs."""

    left_out: LeftOut | None
    budget: float
    by_filter: dict[str, float]
    transient: Transient | None


def check(runs: Runs, budget: float, irreducible: _Range = None, *, bootstrap: int = 2000, seed: int = 0) -> Checks:
    """Check the law of `runs`; a transient is looked for where scipy is installed."""
    lasting = transient(runs) if installed("scipy") else None
    return Checks(left_out(runs, irreducible, bootstrap, seed), budget, by_filter(runs, budget, irreducible), lasting)


def left_out(runs: Runs, irreducible: _Range = None, bootstrap: int = 2000, seed: int = 0) -> LeftOut | None:
    """The largest budget predicted from the others; None if it has no minimum or the others no frontier."""
    smaller = rows_of(budgets(runs)[:-1])
    measured = isoflops(runs, irreducible, bootstrap=0).minima[-1]
    if measured.problem or not smaller:
        return None
    frontier = isoflops(runs.take(smaller), irreducible, bootstrap=bootstrap, seed=seed).frontier
    if frontier is None:
        return None
    flops = measured.flops
    return LeftOut(flops, frontier.estimate(flops), measured.loss)


def by_filter(runs: Runs, budget: float, irreducible: _Range = None) -> dict[str, float]:
    """The loss at `budget` by other choices of runs: near the minima only, and without the lowest budget."""
    others = rows_of(budgets(runs)[1:])
    rest = runs.take(others) if others else None
    tried = {
        f"runs within {_NARROW:.0%} of the lowest loss": (runs, _NARROW),
        "without the lowest budget": (rest, WINDOW),
    }
    found: dict[str, float] = {}
    for name, (chosen, window) in tried.items():
        frontier = isoflops(chosen, irreducible, window=window, bootstrap=0).frontier if chosen else None
        if frontier is not None:
            found[name] = frontier.loss(budget)
    return found


def law_of_cells(runs: Runs) -> Law | None:
    """A law of the runs that one may be fitted to (`cells`); None for fewer than LEAST_CELLS, or without scipy."""
    usable = runs.take(cells(runs))
    if len(usable) < LEAST_CELLS or not installed("scipy"):
        return None
    return law_of(fit_point(usable, "nnls", _START), runs.unit)


def transient(runs: Runs) -> Transient | None:
    """Whether a law of the other budgets misses all runs of the lowest one to one side, by FAR times its own errors.

    None also where there are too few runs for such a law. Only runs that a law may be fitted to count (`cells`).
    """
    usable = runs.take(cells(runs))
    groups = budgets(usable)
    rest = rows_of(groups[1:])
    if len(groups) < 3 or len(groups[0]) < 2 or len(rest) < LEAST_CELLS:
        return None
    lowest, others = usable.take(groups[0]), usable.take(rest)
    law = law_of(fit_point(others, "nnls", _START), runs.unit)
    errors = _errors(law, lowest)
    mean = sum(errors) / len(errors)
    usual = math.sqrt(sum(error**2 for error in _errors(law, others)) / (len(others) - len(NAMES)))
    if min(errors) < 0 < max(errors) or abs(mean) <= FAR * usual:
        return None
    powers = isoflops(runs, bootstrap=0).powers
    without = isoflops(runs.take(rows_of(budgets(runs)[1:])), bootstrap=0).powers
    if runs.symbol not in without:
        return None
    flops = math.exp(sum(map(math.log, lowest.flops)) / len(lowest))
    return Transient(flops, mean, usual, powers[runs.symbol].exponent, without[runs.symbol].exponent)


def _errors(law: Law, runs: Runs) -> list[float]:
    """measured / predicted - 1 of each run."""
    rows = zip(runs.parameters, runs.tokens, runs.losses, strict=True)
    return [loss / law.loss(size, tokens) - 1 for size, tokens, loss in rows]
