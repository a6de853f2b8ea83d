"""L(N, D) = E + A/N^α + B/D^β fitted to runs, with intervals, or the reason why it cannot be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..base import UsageError
from .laws import Law, optimum
from .runs import Runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[Any]

Method = Literal["huber", "nnls"]
DELTA = 1e-3  # of the Huber loss (Hoffmann et al. 2022, appendix D.2)
LEAST_POWER = 0.02  # an exponent at or below it is no power law: the term is as good as constant
FAR = 6  # times the median error, from which a run is called an outlier
LEAST_RUNS = 8  # five constants and three to spare
LEAST_DIFFERENT = 3  # sizes, and numbers of tokens
STARTS = 24  # of the grid's best that are followed to the end
MOST_RUNS = 2000  # that starting points and resampled fits are made of, drawn at random from more
CUTS = (0.6, 0.7, 0.8, 0.9)  # shares of the runs, by compute, from which cross-validation predicts the next tenth
NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Interval:
    """Where 95% of the bootstrap's values lie."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class HeldOut:
    """How a law fitted without the largest budgets predicts them. Errors are shares of the loss.

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

    `unidentified` gives, for each constant that the runs do not pin down, the reason; do not use its value.
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

    def interval(self, value: Callable[[Law], float]) -> Interval:
        """The interval of anything that can be computed from a law, such as N_opt at a budget."""
        return _interval([value(draw) for draw in self.draws])

    @property
    def intervals(self) -> dict[str, Interval]:
        """Of each constant, and of a = β / (α + β), the power of N_opt."""
        named = {name: self.interval(lambda law, name=name: float(getattr(law, name))) for name in NAMES}  # type: ignore[misc]
        return named | {"a": self.interval(power_of_size)}


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
    `bootstrap` refits to that many resampled sets of runs. `progress` hears of what is under way. Raises UsageError
    where the runs cannot tell the constants apart.
    """
    say = progress or (lambda what: None)
    _check(runs)
    say(f"{method}: fitting {len(runs):,} runs")
    point = _fit(runs, method, None)
    found = _law(point)
    draws = []
    for number, draw in enumerate(_bootstrap(runs, method, point, bootstrap, seed), 1):
        draws.append(draw)
        say(f"{method}: {number:,} of {bootstrap:,} resampled fits")
    fitted = LawFit(found, method, runs, _terms(runs, point, method), tuple(draws), None, {})
    unidentified = _unidentified(runs, point) or _wide(fitted)
    held = _hold_out(runs, method, point) if hold_out else None
    return LawFit(found, method, runs, fitted.terms, fitted.draws, held, unidentified)


def believed(fits: Sequence[LawFit]) -> tuple[LawFit, str]:
    """Which of several fits to the same runs to believe, and why.

    The one that predicts the runs of most compute best from those of less, among those whose constants the runs pin
    down; an optimum follows from these alone.
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
        return best, f"{why}; no fit identifies all constants, so that none gives an optimum"
    return best, why + (f"; not identified by these runs: constants of {names}" if names else "")


def objective(runs: Runs, law: Law) -> float:
    """Sum of Huber losses (δ = 1e-3) of log L."""
    return sum(_terms(runs, (math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta), "huber"))


def outlier_remark(fit: LawFit) -> list[str]:
    """Says so if the highest losses lie far off the law: the Huber loss weighs them less, and still follows them."""
    errors = [
        math.log(fit.law.loss(n, d) / loss)
        for n, d, loss in zip(fit.runs.parameters, fit.runs.tokens, fit.runs.losses, strict=True)
    ]
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


# ---- the two fits; a point is (log E, log A, log B, alpha, beta)

Point = Sequence[float]


def _fit(runs: Runs, method: Method, start: Point | None) -> Point:
    """From `start` alone, or from the best starting points, which a sample of many runs shows as well as all."""
    fit = _fit_huber if method == "huber" else _fit_nnls
    if start is None and len(runs) > MOST_RUNS:
        start = fit(_sample(runs), None)
    return fit(runs, start)


def _sample(runs: Runs) -> Runs:
    import random

    return runs.take(random.Random(0).sample(range(len(runs)), MOST_RUNS))


def _law(point: Point, name: str = "fitted", source: str = "fitted to the runs given") -> Law:
    E, A, B = (math.exp(min(value, 700.0)) for value in point[:3])  # a resampled set may pin nothing down
    return Law(name, E, A, B, point[3], point[4], source)


def _logs(runs: Runs) -> tuple[Vector, Vector, Vector]:
    import numpy as np

    return np.log(runs.parameters), np.log(runs.tokens), np.log(runs.losses)


def _fit_huber(runs: Runs, start: Point | None) -> Point:
    import numpy as np
    from scipy.optimize import minimize

    n, d, loss = _logs(runs)

    def value(point: Vector) -> tuple[float, Vector]:
        terms = np.stack([point[0] + 0 * n, point[1] - point[3] * n, point[2] - point[4] * d])
        top = terms.max(0)
        shares = np.exp(terms - top)
        whole = shares.sum(0)
        residual = top + np.log(whole) - loss
        slope = np.clip(residual, -DELTA, DELTA) / DELTA
        shares *= slope / whole
        gradient = np.array([shares[0].sum(), shares[1].sum(), shares[2].sum(), -shares[1] @ n, -shares[2] @ d])
        return float(_huber(residual).sum() / DELTA), gradient

    def follow(point: Point) -> Any:
        # Twice: the second run begins with a fresh picture of the curvature.
        first = minimize(
            value, np.asarray(point, float), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
        )
        again = minimize(value, first.x, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000})
        return min(first, again, key=lambda result: result.fun)

    starts = [start] if start is not None else _grid(value)
    best = min((follow(point) for point in starts), key=lambda result: result.fun)
    return tuple(float(x) for x in best.x)


def _grid(value: Callable[[Vector], tuple[float, Vector]]) -> list[Point]:
    """The best of Hoffmann et al.'s starting points (appendix D.2)."""
    import itertools

    import numpy as np

    halves, fives = np.arange(0, 2.1, 0.5), np.arange(0, 26.0, 5)
    points = itertools.product(np.arange(-1, 1.1, 0.5), fives, fives, halves, halves)
    best = sorted(points, key=lambda point: value(np.array(point))[0])[:STARTS]
    return [tuple(float(x) for x in point) for point in best]


def _huber(residual: Vector) -> Vector:
    import numpy as np

    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))


def _terms(runs: Runs, point: Point, method: Method) -> tuple[float, ...]:
    import numpy as np

    n, d, loss = _logs(runs)
    predicted = np.exp(point[0]) + np.exp(point[1] - point[3] * n) + np.exp(point[2] - point[4] * d)
    if method == "nnls":
        return tuple(float(x) for x in (predicted / np.exp(loss) - 1) ** 2)
    return tuple(float(x) for x in _huber(np.log(predicted) - loss))


def _fit_nnls(runs: Runs, start: Point | None) -> Point:
    import numpy as np
    from scipy.optimize import minimize, nnls

    n, d, loss = _logs(runs)
    n0, d0, weight = n.mean(), d.mean(), np.exp(-loss)  # centred, so that the columns are of one size

    def solve(powers: Vector) -> tuple[Vector, float]:
        columns = np.stack([np.ones_like(n), np.exp(-powers[0] * (n - n0)), np.exp(-powers[1] * (d - d0))], 1)
        # a triangle of four rows has the same solution and residual as all rows, of which nnls would make a square
        whole: Any = np.linalg.qr(np.column_stack([columns * weight[:, None], np.ones_like(n)]), mode="r")
        factors, residual = nnls(whole[:, :3], whole[:, 3])
        return factors, float(residual)

    def value(powers: Vector) -> float:
        return solve(powers)[1] ** 2 if powers.min() > 0 and powers.max() < 5 else math.inf

    grid = [(a, b) for a in np.arange(0.1, 1.6, 0.1) for b in np.arange(0.1, 1.6, 0.1)]
    first = start[3:] if start is not None else min(grid, key=lambda powers: value(np.array(powers)))
    fine, coarse = {"xatol": 1e-10, "fatol": 1e-22, "maxiter": 4000}, {"xatol": 1e-4, "fatol": 1e-7, "maxiter": 200}
    options = fine if start is None else coarse  # a resampled fit need not be exact
    best = minimize(value, np.asarray(first), method="Nelder-Mead", options=options)
    if start is None:
        best = minimize(value, best.x, method="Nelder-Mead", options=options)
    E, A, B = (math.log(max(factor, 1e-300)) for factor in solve(best.x)[0])
    alpha, beta = float(best.x[0]), float(best.x[1])
    return E, A + alpha * float(n0), B + beta * float(d0), alpha, beta


# ---- how sure


def _bootstrap(runs: Runs, method: Method, point: Point, count: int, seed: int) -> Iterator[Law]:
    """Fits to runs drawn with replacement: as many as there are, or MOST_RUNS of more.

    Fewer than there are spread more, by the root of the ratio; the fits are drawn in by it (m out of n bootstrap,
    Bickel, Götze and van Zwet 1997).
    """
    import random

    draw, size = random.Random(seed), min(len(runs), MOST_RUNS)
    nearer = math.sqrt(size / len(runs))
    for _ in range(count):
        rows = [draw.randrange(len(runs)) for _ in range(size)]
        found = _fit(runs.take(rows), method, point)
        if nearer < 1:
            found = [middle + nearer * (value - middle) for middle, value in zip(point, found, strict=True)]
        yield _law(found, "bootstrap")


def _interval(values: Sequence[float]) -> Interval:
    if not values:
        return Interval(math.nan, math.nan)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Interval(ordered[round(0.025 * last)], ordered[round(0.975 * last)])


def _hold_out(runs: Runs, method: Method, point: Point) -> HeldOut | None:
    """Leave out the runs of most compute, a tenth after the other, and predict them by fits to those of less."""
    if len(runs) > MOST_RUNS:
        return _hold_out(_sample(runs), method, point)
    order = sorted(range(len(runs)), key=lambda row: runs.flops[row])
    folds = [errors for cut in CUTS if (errors := _ahead(runs, order, method, point, cut))]
    if not folds:
        return None
    last = folds[-1]  # where fewer runs are enough, more are
    each = [error for errors in folds for error in errors]
    least = min(runs.flops[row] for row in order[len(order) - len(last) :])
    return HeldOut(len(last), least, sum(last) / len(last), _rms(last), len(folds), len(each), _rms(each))


def _ahead(runs: Runs, order: Sequence[int], method: Method, point: Point, cut: float) -> list[float]:
    """predicted / measured - 1 of the tenth of the runs after `cut`, by a fit to those before; empty if too few."""
    left = len(runs) - max(1, round((1 - cut) * len(runs)))
    right = len(runs) - round((0.9 - cut) * len(runs))
    kept, asked = runs.take(order[:left]), runs.take(order[left:right])
    try:
        _check(kept)
    except UsageError:
        return []
    law = _law(_fit(kept, method, point))
    return [law.loss(n, d) / loss - 1 for n, d, loss in zip(asked.parameters, asked.tokens, asked.losses, strict=True)]


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _check(runs: Runs) -> None:
    if len(runs) < LEAST_RUNS:
        raise UsageError(f"{len(runs)} runs cannot fix five constants; at least {LEAST_RUNS} are needed")
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
    """How many values are more than 5% apart."""
    count, last = 0, 0.0
    for value in sorted(values):
        if value > 1.05 * last:
            count, last = count + 1, value
    return count


def _unidentified(runs: Runs, point: Point) -> dict[str, str]:
    """Constants that can move together without changing any prediction, or whose term has vanished."""
    import numpy as np

    n, d, _ = _logs(runs)
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
    for place, names, what in ((3, ("A", "alpha"), "size"), (4, ("B", "beta"), "data")):
        if point[place] <= LEAST_POWER:
            problems |= dict.fromkeys(
                names, f"{what} hardly changes the loss of these runs, so its power law is not seen"
            )
    return problems


def _wide(fitted: LawFit) -> dict[str, str]:
    """Exponents whose interval reaches zero or spans more than the value itself on either side."""
    if not fitted.draws:
        return {}
    problems: dict[str, str] = {}
    for name, factor in (("alpha", "A"), ("beta", "B")):
        value, interval = getattr(fitted.law, name), fitted.intervals[name]
        if interval.low <= LEAST_POWER or interval.high > 3 * value:
            reason = f"95% of resampled fits give {name} from {interval.low:.2g} to {interval.high:.2g}"
            problems |= {name: reason, factor: reason}
    return problems


def optimal_size(budget: float) -> Callable[[Law], float]:
    """For `LawFit.interval`: N_opt at a budget."""
    return lambda law: optimum(budget, law).parameters
