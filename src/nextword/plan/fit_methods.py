"""The two ways to fit L(N, D) = E + A/N^α + B/D^β to runs; a point is (log E, log A, log B, alpha, beta)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..base import require
from .runs import Runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[Any]

Point = Sequence[float]
Method = Literal["huber", "nnls"]
DELTA = 1e-3  # of the Huber loss (Hoffmann et al. 2022, appendix D.2)
STARTS = 24  # best grid points to optimise from
MOST_RUNS = 2000  # for starting points and bootstrap fits; a random sample if there are more


def fit_point(runs: Runs, method: Method, start: Point | None) -> Point:
    """Fit from `start`, or from the best starting points, found on a sample if there are many runs."""
    require("scipy", "a fit")
    method_fit = _fit_huber if method == "huber" else _fit_nnls
    if start is None and len(runs) > MOST_RUNS:
        start = method_fit(sample(runs), None)
    return method_fit(runs, start)


def sample(runs: Runs) -> Runs:
    import random

    return runs.take(random.Random(0).sample(range(len(runs)), MOST_RUNS))


def logs(runs: Runs) -> tuple[Vector, Vector, Vector]:
    import numpy as np

    return np.log(runs.parameters), np.log(runs.tokens), np.log(runs.losses)


def _fit_huber(runs: Runs, start: Point | None) -> Point:
    import numpy as np
    from scipy.optimize import minimize

    n, d, loss = logs(runs)

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


def terms(runs: Runs, point: Point, method: Method) -> tuple[float, ...]:
    import numpy as np

    n, d, loss = logs(runs)
    predicted = np.exp(point[0]) + np.exp(point[1] - point[3] * n) + np.exp(point[2] - point[4] * d)
    if method == "nnls":
        return tuple(float(x) for x in (predicted / np.exp(loss) - 1) ** 2)
    return tuple(float(x) for x in _huber(np.log(predicted) - loss))


def _fit_nnls(runs: Runs, start: Point | None) -> Point:
    import numpy as np
    from scipy.optimize import minimize, nnls

    n, d, loss = logs(runs)
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
    options = fine if start is None else coarse  # a bootstrap fit need not be exact
    best = minimize(value, np.asarray(first), method="Nelder-Mead", options=options)
    if start is None:
        best = minimize(value, best.x, method="Nelder-Mead", options=options)
    E, A, B = (math.log(max(factor, 1e-300)) for factor in solve(best.x)[0])
    alpha, beta = float(best.x[0]), float(best.x[1])
    return E, A + alpha * float(n0), B + beta * float(d0), alpha, beta
