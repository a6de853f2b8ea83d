"""Fits L(N, D) = E + A/N^α + B/D^β to runs, with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..base import UsageError
from .fit_methods import MOST_RUNS, Method, Point, fit_point, logs, sample, terms
from .laws import Law, Optimum, Unit, optimum
from .runs import Runs

LEAST_POWER = 0.02  # an exponent at or below it is not a power law: the term is nearly constant
FAR = 6  # times the median error: a run beyond it is an outlier
MOST_RMS = 0.03  # of relative errors; a law that is further off does not describe its runs
LEAST_RUNS = 8  # five constants and three to spare
LEAST_DIFFERENT = 3  # sizes, and numbers of tokens
CUTS = (0.6, 0.7, 0.8, 0.9)  # shares of the runs, by compute, to predict the next tenth from in cross-validation
NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Interval:
    """The interval of 95% of the bootstrap's values."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class HeldOut:
    """How well a law fitted without the largest budgets predicts them. Errors are shares of the loss.

    `ahead_rms` is cross-validated: of every tenth of the runs from CUTS on, predicted from those of less compute.
    """

    runs: int
    least_flops: float
    bias: float  # mean of predicted / measured - 1
    rms: float
    folds: int
    ahead_runs: int
    ahead_rms: float


@dataclass(frozen=True)
class LawFit:
    """A fitted law. `terms` are the runs' contributions to the objective and sum to it.

    `unidentified` maps each constant that the runs do not determine to the reason; do not use its value.
    """

    law: Law
    method: Method
    runs: Runs
    terms: tuple[float, ...]
    draws: tuple[Law, ...]
    held_out: HeldOut | None
    unidentified: dict[str, str]

    @property
    def objective(self) -> float:
        return sum(self.terms)

    @property
    def errors(self) -> tuple[float, ...]:
        """log(predicted / measured) of each run."""
        runs = self.runs
        return tuple(math.log(self.law.loss(n, d) / loss)
                     for n, d, loss in zip(runs.parameters, runs.tokens, runs.losses, strict=True))  # fmt: skip

    @property
    def rms(self) -> float:
        """The root mean square of `errors`."""
        return _rms(self.errors)

    def interval(self, value: Callable[[Law], float]) -> Interval:
        """The interval of a function of the law, such as N_opt at a budget."""
        return interval_of([value(draw) for draw in self.draws])

    @property
    def constants(self) -> dict[str, float]:
        """The identified constants, and a = β / (α + β), the exponent of N_opt."""
        named = {name: float(getattr(self.law, name)) for name in NAMES} | {"a": power_of_size(self.law)}
        return {name: value for name, value in named.items() if name not in self.unidentified}

    @property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of each constant, and of a."""
        named = {name: self.interval(lambda law, name=name: float(getattr(law, name))) for name in NAMES}  # type: ignore[misc]
        return named | {"a": self.interval(power_of_size)}

    def at(self, budget: float) -> FittedOptimum:
        """The optimum at a budget of FLOPs, with intervals."""
        draws = [optimum(budget, draw) for draw in self.draws]
        return FittedOptimum(
            optimum(budget, self.law),
            interval_of([draw.parameters for draw in draws]),
            interval_of([draw.ratio for draw in draws]),
            interval_of([draw.loss for draw in draws]),
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the runs and the law."""
        from .plots import law_bundle

        return law_bundle(self)


@dataclass(frozen=True)
class FittedOptimum:
    """An optimum by a fitted law, and the intervals of its numbers."""

    optimum: Optimum
    parameters: Interval
    ratio: Interval
    loss: Interval


def power_of_size(law: Law) -> float:
    """a in N_opt ~ C^a."""
    return law.beta / (law.alpha + law.beta)


def fit_law(
    runs: Runs,
    method: Method = "huber",
    *,
    bootstrap: int = 200,
    hold_out: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> LawFit:
    """Fit a law to `runs`.

    "huber" minimises the sum of Huber losses between log-sum-exp and log L (Hoffmann et al. 2022, eq. 3);
    "nnls" solves E, A, B by non-negative least squares of relative errors for each (α, β) and searches the two.
    `bootstrap` is the number of resampled fits. `progress` is called with a description of the current work. Raises
    UsageError if the runs cannot identify the constants.
    """
    log = progress or (lambda what: None)
    _check(runs)
    log(f"{method}: fitting {len(runs):,} runs")
    point = fit_point(runs, method, None)
    law = law_of(point, runs.unit)
    draws = []
    for number, draw in enumerate(_bootstrap(runs, method, point, bootstrap, seed), 1):
        draws.append(draw)
        log(f"{method}: {number:,} of {bootstrap:,} resampled fits")
    fitted = LawFit(law, method, runs, terms(runs, point, method), tuple(draws), None, {})
    unidentified = _unidentified(runs, point) or _wide(fitted)
    held = _hold_out(runs, method, point) if hold_out else None
    return LawFit(law, method, runs, fitted.terms, fitted.draws, held, unidentified)


def believed(fits: Sequence[LawFit]) -> tuple[LawFit, str]:
    """Which of several fits to the same runs to use, and the reason.

    The one that best predicts the runs with most compute from those with less, among the fits whose constants are
    identified; only these give an optimum.
    """
    identified = [fit for fit in fits if not fit.unidentified]

    def ahead(fit: LawFit) -> float:
        return fit.held_out.ahead_rms if fit.held_out is not None else math.inf

    best = min(identified or fits, key=ahead)
    names = ", ".join(fit.method for fit in fits if fit.unidentified)
    if best.held_out is None:
        return (
            best,
            f"too few runs to try it on others{f'; {names} has constants that are not identified' * bool(names)}",
        )
    errors = ", ".join(f"{fit.method} {ahead(fit):.2%}" for fit in fits)
    why = (
        f"predicted from the runs of less compute, {best.held_out.ahead_runs} runs in {best.held_out.folds} folds are"
        f" off by (root mean square): {errors}"
    )
    if not identified:
        return best, f"{why}; no fit identifies all constants, so none gives an optimum"
    return best, why + (f"; not identified by these runs: constants of {names}" if names else "")


def objective(runs: Runs, law: Law) -> float:
    """Sum of Huber losses (δ = 1e-3) of log L."""
    return sum(terms(runs, (math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta), "huber"))


def misfit_remark(rms: float) -> list[str]:
    """A remark if a law is off by more than MOST_RMS: what it predicts then is not worth printing without one."""
    if rms <= MOST_RMS:
        return []
    return [f"this law does not describe these runs: it is off by {rms:.1%} (root mean square), over {MOST_RMS:.0%}"]


def outlier_remark(fit: LawFit) -> list[str]:
    """A remark if the highest losses are far off the law: they affect even the Huber loss."""
    errors = fit.errors
    usual = statistics.median(abs(error) for error in errors)
    far = sum(abs(error) > FAR * usual for error in errors)
    order = sorted(range(len(errors)), key=lambda row: -fit.runs.losses[row])
    top = 0
    while top < len(order) // 10 and abs(errors[order[top]]) > FAR * usual:
        top += 1
    if top < 0.01 * len(errors):
        return []
    return [
        f"{far} runs lie more than {FAR} times the usual {usual:.2%} off this law, among them the {top} of highest"
        f" loss, which pull it towards them. Without those: --drop-highest {top}"
    ]


# ---- uncertainty


def law_of(point: Point, unit: Unit, name: str = "fitted") -> Law:
    """The law at a point of a fit."""
    E, A, B = (math.exp(min(value, 700.0)) for value in point[:3])  # a resampled set may not identify it
    return Law(name, E, A, B, point[3], point[4], "fitted to the runs given", unit)


def _bootstrap(runs: Runs, method: Method, point: Point, count: int, seed: int) -> Iterator[Law]:
    """Fits to runs drawn with replacement: as many as given, at most MOST_RUNS.

    A smaller sample has a larger spread, by the root of the ratio, which is corrected for (m out of n bootstrap,
    Bickel, Götze and van Zwet 1997).
    """
    import random

    draw, size = random.Random(seed), min(len(runs), MOST_RUNS)
    nearer = math.sqrt(size / len(runs))
    for _ in range(count):
        rows = [draw.randrange(len(runs)) for _ in range(size)]
        refit = fit_point(runs.take(rows), method, point)
        if nearer < 1:
            refit = [middle + nearer * (value - middle) for middle, value in zip(point, refit, strict=True)]
        yield law_of(refit, runs.unit, "bootstrap")


def interval_of(values: Sequence[float]) -> Interval:
    """The middle 95% of values; NaN without any."""
    if not values:
        return Interval(math.nan, math.nan)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Interval(ordered[round(0.025 * last)], ordered[round(0.975 * last)])


def _hold_out(runs: Runs, method: Method, point: Point) -> HeldOut | None:
    """Leave out the runs with most compute, a tenth at a time, and predict them by fits to the rest."""
    if len(runs) > MOST_RUNS:
        return _hold_out(sample(runs), method, point)
    order = sorted(range(len(runs)), key=lambda row: runs.flops[row])
    folds = [errors for cut in CUTS if (errors := _ahead(runs, order, method, point, cut))]
    if not folds:
        return None
    last = folds[-1]  # if fewer runs are enough, so are more
    errors = [error for fold in folds for error in fold]
    least = min(runs.flops[row] for row in order[len(order) - len(last) :])
    return HeldOut(len(last), least, sum(last) / len(last), _rms(last), len(folds), len(errors), _rms(errors))


def _ahead(runs: Runs, order: Sequence[int], method: Method, point: Point, cut: float) -> list[float]:
    """predicted / measured - 1 of the tenth of the runs after `cut`, by a fit to those before; empty if too few."""
    left = len(runs) - max(1, round((1 - cut) * len(runs)))
    right = len(runs) - round((0.9 - cut) * len(runs))
    kept, asked = runs.take(order[:left]), runs.take(order[left:right])
    try:
        _check(kept)
    except UsageError:
        return []
    law = law_of(fit_point(kept, method, point), runs.unit)
    return [law.loss(n, d) / loss - 1 for n, d, loss in zip(asked.parameters, asked.tokens, asked.losses, strict=True)]


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _check(runs: Runs) -> None:
    if len(runs) < LEAST_RUNS:
        raise UsageError(f"a fit of five constants needs at least {LEAST_RUNS} runs, not {len(runs)}")
    for what, values, constants in (
        ("sizes", runs.parameters, "A and alpha"),
        ("numbers of tokens", runs.tokens, "B and beta"),
    ):
        if (different := _different(values)) < LEAST_DIFFERENT:
            raise UsageError(
                f"the runs have {different} different {what}; {constants} are not identified with fewer than"
                f" {LEAST_DIFFERENT}. Add runs that vary them"
            )


def _different(values: Sequence[float]) -> int:
    """The number of values that are more than 5% apart."""
    count, last = 0, 0.0
    for value in sorted(values):
        if value > 1.05 * last:
            count, last = count + 1, value
    return count


def _unidentified(runs: Runs, point: Point) -> dict[str, str]:
    """Constants that can move together without changing any prediction, or whose term has vanished."""
    import numpy as np

    n, d, _ = logs(runs)
    terms = np.exp(np.stack([point[0] + 0 * n, point[1] - point[3] * n, point[2] - point[4] * d]))
    shares = terms / terms.sum(0)
    problems: dict[str, str] = {}
    for row, names in ((0, ("E",)), (1, ("A", "alpha")), (2, ("B", "beta"))):
        if shares[row].max() < 1e-4:
            problems |= dict.fromkeys(names, "its term is below 0.01% of the loss in every run")
    slopes = np.stack([shares[0], shares[1], shares[2], -shares[1] * n, -shares[2] * d], 1)
    sizes = np.linalg.norm(slopes, axis=0)
    _, strengths, directions = np.linalg.svd(slopes / np.where(sizes > 0, sizes, 1), full_matrices=False)
    if strengths[-1] < 1e-5 * strengths[0]:
        mixed = [name for name, part in zip(NAMES, directions[-1], strict=True) if abs(part) > 0.3]
        reason = f"{', '.join(mixed)} can change together without changing any prediction: vary size and data apart"
        problems |= dict.fromkeys(mixed, reason)
    for row, names, what in ((3, ("A", "alpha"), "size"), (4, ("B", "beta"), "data")):
        if point[row] <= LEAST_POWER:
            problems |= dict.fromkeys(
                names, f"{what} hardly changes the loss of these runs, so its power law is not seen"
            )
    return problems


def _wide(fitted: LawFit) -> dict[str, str]:
    """Exponents whose interval reaches zero or extends by more than the value itself on either side."""
    if not fitted.draws:
        return {}
    problems: dict[str, str] = {}
    for name, factor in (("alpha", "A"), ("beta", "B")):
        value, interval = getattr(fitted.law, name), fitted.intervals[name]
        if interval.low <= LEAST_POWER or interval.high > 3 * value:
            reason = f"95% of resampled fits give {name} from {interval.low:.2g} to {interval.high:.2g}"
            problems |= {name: reason, factor: reason}
    return problems
