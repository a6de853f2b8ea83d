"""Optimal sizes and losses along a frontier of compute, from runs at equal FLOPs (Hoffmann et al. 2022, approach 2).

For each budget a parabola of the loss in log size gives the best size M and its loss; through these, log M against
log C gives the exponent, and L = E + K / C^γ the frontier. E is held within a range: runs below some 1e20 FLOPs do not
determine it. Intervals are a bootstrap: normal noise with the spread of the runs about their parabolas is added to
them, and everything is fitted again, with E drawn from its range; scatter of the minima about the frontier beyond that
widens it. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .fitting import Interval, interval_of
from .laws import Unit
from .run_tables import SAME
from .runs import Optima, Runs

Vector = NDArray[Any]
_Kind = TypeVar("_Kind", bound=str)
_NONE = Interval(math.nan, math.nan)

WINDOW = 0.10  # of the lowest loss: runs above it are left out of a budget's parabola
FLAT = 0.005  # of the loss at the minimum: the flat region
RATIOS = (3.0, 300.0)  # tokens a parameter within which A / N^α + B / D^β holds
IRREDUCIBLE: Mapping[Unit, tuple[float, float]] = {"nats/token": (1.5, 2.1), "bits/byte": (0.45, 0.75)}
LEAST_SIZES = 3  # of a parabola
LEAST_BUDGETS = 2  # of a line
GAP = 1.1  # ratio between budgets; runs that are denser are scattered
_LEAST = 1e-3  # of a loss: no draw is below, whatever Student's t gives
_STEPS = 32  # of the search for E where it is free: to a millionth of the loss


@dataclass(frozen=True)
class Minimum:
    """The best size of a budget by its parabola, with 95% intervals; `problem` says why there is none."""

    flops: float
    runs: int  # within WINDOW of the lowest loss
    of: int
    problem: str = ""
    size: float = math.nan
    tokens: float = math.nan
    loss: float = math.nan
    flat: Interval = _NONE  # sizes whose loss is within FLAT of the minimum
    size_interval: Interval = _NONE
    loss_interval: Interval = _NONE

    def at(self, size: float) -> float:
        """The loss of a size by the parabola."""
        half = math.log(self.flat.high / self.size)
        return self.loss * (1 + FLAT * (math.log(size / self.size) / half) ** 2)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval, which is NaN without a bootstrap."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Prediction:
    """Sizes by name and the loss at the optimum of a budget; the loss is None where there is no frontier."""

    flops: float
    sizes: Mapping[str, Estimate]
    loss: Estimate | None


@dataclass(frozen=True)
class Power:
    """A power of C: value = exp(constant) C^exponent; `draws` are the bootstrap's constants and exponents."""

    constant: float
    exponent: float
    draws: Vector  # (draws, 2)

    @property
    def estimate(self) -> Estimate:
        """The exponent."""
        return Estimate(self.exponent, interval_of(self.draws[:, 1].tolist()))

    def at(self, budget: float) -> Estimate:
        """The value at a budget."""
        drawn = _exp(self.draws[:, 0] + self.draws[:, 1] * math.log(budget))
        return Estimate(float(_exp(self.constant + self.exponent * math.log(budget))), interval_of(drawn.tolist()))


@dataclass(frozen=True)
class Frontier:
    """L = E + K / C^γ through the budgets' minima, with E held; `draws` hold E, log K and γ of the bootstrap.

    `free` is the E of least squares where there are enough budgets for one, and `free_interval` its interval; it is not
    identified unless that is narrower than a third of IRREDUCIBLE.
    """

    unit: Unit
    E: float
    held: Interval
    K: float
    gamma: float
    budgets: int
    rms: float  # of predicted / loss - 1 over the minima
    noise: float  # of a run's loss, relative
    draws: Vector  # (draws, 3)
    free: float
    free_interval: Interval

    @property
    def identified(self) -> bool:
        """Whether the runs determine E."""
        low, high = IRREDUCIBLE[self.unit]
        return self.free_interval.high - self.free_interval.low < (high - low) / 3

    @property
    def gamma_interval(self) -> Interval:
        return interval_of(self.draws[:, 2].tolist())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the draws."""
        free = {"value": self.free if self.identified else None, "interval": asdict(self.free_interval)}
        gamma = {"value": self.gamma, "interval": asdict(self.gamma_interval)}
        return {
            "unit": self.unit,
            "budgets": self.budgets,
            "E": self.E,
            "held": asdict(self.held),
            "K": self.K,
            "gamma": gamma,
            "rms": self.rms,
            "noise": self.noise,
            "free_E": free,
        }

    def loss(self, budget: float) -> float:
        """The least loss that `budget` FLOPs reach."""
        return float(self.E + self.K * budget**-self.gamma)

    def budget_for(self, loss: float) -> tuple[float, Vector]:
        """FLOPs that reach `loss`, and the bootstrap's; beyond all bounds for one at or below E."""

        def solved(E: Vector, log_k: Vector, gamma: Vector) -> Vector:
            left = np.maximum(loss - E, 1e-300)
            return _exp((log_k - np.log(left)) / gamma)

        value = solved(np.array(self.E), np.array(math.log(self.K)), np.array(self.gamma))
        return float(value), solved(*self.draws.T)

    def estimate(self, budget: float, seed: int = 0) -> Estimate:
        """The loss of a run at the optimum; its interval has E's range, the bootstrap and a run's noise in it."""
        normal = np.random.default_rng(seed).standard_normal(len(self.draws))
        drawn = self.draws[:, 0] + _exp(self.draws[:, 1] - self.draws[:, 2] * math.log(budget))
        return Estimate(self.loss(budget), interval_of((drawn * (1 + self.noise * normal)).tolist()))


@dataclass(frozen=True)
class Scaling:
    """What the best runs of several budgets say: powers of C for the sizes by name (M or N, D, other counts of N),
    and the frontier of the loss, or why there is none. Read from runs it has `minima`, one a budget.
    """

    unit: Unit
    size: str  # the name of the size whose minima these are: M or N
    minima: tuple[Minimum, ...]
    powers: Mapping[str, Power]
    frontier: Frontier | None
    problem: str

    def predict(self, budget: float) -> Prediction:
        """Sizes and loss at the optimum of `budget` FLOPs."""
        sizes = {name: power.at(budget) for name, power in self.powers.items()}
        loss = self.frontier.estimate(budget) if self.frontier else None
        return Prediction(budget, sizes, loss)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the bootstrap's draws."""
        return {
            "unit": self.unit,
            "minima": [asdict(minimum) for minimum in self.minima],
            "exponents": {name: asdict(power.estimate) for name, power in self.powers.items()},
            "frontier": self.frontier.to_dict() if self.frontier else None,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class _Parabolas:
    """The minima of all bracketed budgets: logs of sizes and losses, and the bootstrap's (draws, budgets)."""

    minima: tuple[Minimum, ...]
    sizes: Vector
    losses: Vector
    size_draws: Vector
    loss_draws: Vector
    noise: float

    @cached_property
    def flops(self) -> Vector:
        return np.array([minimum.flops for minimum in self.minima if not minimum.problem])


def budgets(runs: Runs) -> list[list[int]]:
    """The rows of runs of equal FLOPs (within 2%), from the least on."""
    groups: list[list[int]] = []
    flops = runs.flops
    for row in sorted(range(len(runs)), key=flops.__getitem__):
        if groups and flops[row] <= SAME * flops[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def rows_of(groups: Sequence[Sequence[int]]) -> list[int]:
    """The rows of several budgets, in order."""
    return sorted(row for group in groups for row in group)


def form_budgets(runs: Runs) -> bool:
    """Whether two thirds of the runs or more lie in budgets of three sizes or more, with a gap to the next budget."""
    groups, flops = budgets(runs), runs.flops
    ends = [0.0, *(flops[group[-1]] for group in groups)]
    apart = [flops[group[0]] > GAP * end for group, end in zip(groups, ends, strict=False)] + [True]
    found = [group for number, group in enumerate(groups) if apart[number] and apart[number + 1]
             and len({runs.parameters[row] for row in group}) >= LEAST_SIZES]  # fmt: skip
    return sum(map(len, found)) >= 2 / 3 * len(runs)


def cells(runs: Runs, window: float = WINDOW) -> list[int]:
    """Rows that A / N^α + B / D^β may be fitted to: D / M within RATIOS, the loss near its budget's lowest."""
    near = rows_of([near_minimum(runs, group, window) for group in budgets(runs)])
    return [row for row in near if RATIOS[0] <= runs.tokens[row] / runs.parameters[row] <= RATIOS[1]]


def isoflops(
    runs: Runs,
    irreducible: tuple[float, float] | None = None,
    *,
    window: float = WINDOW,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Scaling:
    """Minima of every budget, their powers of C, and the frontier with E held in `irreducible` (default: IRREDUCIBLE).

    Budgets whose minimum lies outside their sizes, or that have fewer than three, stay out of the lines and have a
    `problem`.
    """
    found = _parabolas(runs, runs.parameters, window, bootstrap, seed)
    powers: dict[str, Power] = {}
    if len(found.flops) >= LEAST_BUDGETS:
        size = _power(found.flops, found.sizes, found.size_draws)
        powers[runs.symbol] = size
        powers["D"] = Power(-size.constant - math.log(6), 1 - size.exponent, -size.draws + [-math.log(6), 1])
    for name, count in runs.counts.items():
        counted = _parabolas(runs, count, window, bootstrap, seed)
        if len(counted.flops) >= LEAST_BUDGETS:
            powers[name] = _power(counted.flops, counted.sizes, counted.size_draws)
    frontier, problem = _held(found.flops, found.losses, found.loss_draws, found.noise, runs.unit, irreducible, seed)
    return Scaling(runs.unit, runs.symbol, found.minima, powers, frontier, problem)


def compute_at_equal_loss(frontier: Frontier, other: Frontier, loss: float) -> Estimate:
    """How many times the compute of `frontier` the `other` takes to reach `loss`; E is the same for both."""
    value, draws = frontier.budget_for(loss)
    others, other_draws = other.budget_for(loss)
    count = min(len(draws), len(other_draws))
    return Estimate(others / value, interval_of((other_draws[:count] / draws[:count]).tolist()))


def compute_by_kind(frontiers: Mapping[_Kind, Frontier], loss: float) -> tuple[_Kind, dict[_Kind, Estimate]]:
    """The kind that takes the least compute to reach `loss`, and how many times as much each of the others takes."""
    base = min(frontiers, key=lambda kind: frontiers[kind].budget_for(loss)[0])
    factors = {kind: compute_at_equal_loss(frontiers[base], frontier, loss)
               for kind, frontier in frontiers.items() if kind != base}  # fmt: skip
    return base, factors


def scaling_of_optima(
    optima: Optima, irreducible: tuple[float, float] | None = None, *, bootstrap: int = 2000, seed: int = 0
) -> Scaling:
    """The powers of C that a table of optima follows, and its frontier if it has losses.

    The noise of the bootstrap is that of the optima about the line. Raises UsageError for fewer than three budgets.
    """
    if len(optima) < LEAST_SIZES:
        raise UsageError(f"a line and its interval take optima of at least {LEAST_SIZES} budgets, not {len(optima)}")
    flops = np.asarray(optima.flops)
    powers: dict[str, Power] = {}
    for name, values in optima.sizes.items():
        logs = np.log(values)
        constant, slope = _line(flops, logs)
        residuals = logs - constant - slope * np.log(flops)
        drawn, _ = _noisy(residuals, 2, np.ones_like(logs), bootstrap, seed)
        powers[name] = _power(flops, logs, logs + drawn - 1)
    size = next(iter(powers))
    if not optima.losses:
        return Scaling(optima.unit, size, (), powers, None, "the table has no losses")
    losses = np.asarray(optima.losses)
    low, high = irreducible or IRREDUCIBLE[optima.unit]
    if problem := _outside(low, high, float(losses.min()), optima.unit):
        return Scaling(optima.unit, size, (), powers, None, problem)
    line = _line(flops, np.log(losses - (low + high) / 2))
    fitted = (low + high) / 2 + np.exp(line[0] + line[1] * np.log(flops))
    drawn, noise = _noisy(losses / fitted - 1, 2, losses, bootstrap, seed)
    frontier, problem = _held(flops, losses, drawn, noise, optima.unit, irreducible, seed)
    return Scaling(optima.unit, size, (), powers, frontier, problem)


# ---- parabolas


def near_minimum(runs: Runs, group: Sequence[int], window: float = WINDOW) -> list[int]:
    """The rows of a budget within `window` of its lowest loss."""
    lowest = min(runs.losses[row] for row in group)
    return [row for row in group if runs.losses[row] <= (1 + window) * lowest]


def _parabolas(runs: Runs, sizes: Sequence[float], window: float, bootstrap: int, seed: int) -> _Parabolas:
    groups = [(group, near_minimum(runs, group, window)) for group in budgets(runs)]
    fits = [_Parabola(np.log([sizes[row] for row in near]), np.array([runs.losses[row] for row in near]))
            for _, near in groups]  # fmt: skip
    good = [fit for fit in fits if not fit.problem]
    residuals = np.concatenate([fit.residuals for fit in good]) if good else np.zeros(0)
    fitted = np.concatenate([fit.fitted for fit in good]) if good else np.zeros(0)
    drawn, noise = _noisy(residuals, 3 * len(good), fitted, bootstrap, seed)
    parts = np.split(drawn, np.cumsum([len(fit.fitted) for fit in good])[:-1], axis=1) if good else []
    lowest = [fit.lowest(part.T) for fit, part in zip(good, parts, strict=True)]
    minima: list[Minimum] = []
    left, work = iter(lowest), runs.flops
    for (group, near), fit in zip(groups, fits, strict=True):
        flops = math.exp(sum(math.log(work[row]) for row in group) / len(group))
        if fit.problem:
            minima.append(Minimum(flops, len(near), len(group), fit.problem))
        else:
            minima.append(_minimum(fit, flops, len(near), len(group), *next(left)))
    if not good:
        return _Parabolas(tuple(minima), np.zeros(0), np.zeros(0), drawn, drawn, noise)
    sizes_of, losses_of = np.array([fit.best for fit in good]).T
    size_draws, loss_draws = (np.stack(column, 1) for column in zip(*lowest, strict=True))
    return _Parabolas(tuple(minima), sizes_of, losses_of, size_draws, loss_draws, noise)


class _Parabola:
    """Least squares of the loss in log size."""

    def __init__(self, x: Vector, y: Vector) -> None:
        self.problem = ""
        self.centre = x.mean()
        self.x = x - self.centre
        if len(set(x.tolist())) < LEAST_SIZES:
            self.problem = f"not bracketed: {len(set(x.tolist()))} sizes near the minimum; add sizes"
            return
        self.design = np.stack([np.ones_like(x), self.x, self.x**2], 1)
        self.solve = np.linalg.pinv(self.design)
        self.coefficients = self.solve @ y
        self.fitted = self.design @ self.coefficients
        self.residuals = y / self.fitted - 1
        constant, slope, curvature = self.coefficients
        if curvature <= 0 or not self.x.min() < -slope / (2 * curvature) < self.x.max():
            self.problem = f"not bracketed: add {'larger' if slope < 0 else 'smaller'} sizes"
            return
        at = -slope / (2 * curvature)
        self.best = float(at + self.centre), float(constant + slope * at / 2)

    def lowest(self, losses: Vector) -> tuple[Vector, Vector]:
        """Log size and loss at the minimum of the parabola through each column; at an end if it has none inside."""
        constant, slope, curvature = self.solve @ losses
        low, high = self.x.min(), self.x.max()
        ends = np.where(slope > 0, low, high)
        inside = np.divide(-slope, 2 * curvature, out=ends.copy(), where=curvature > 0)
        at = np.clip(inside, low, high)
        return at + self.centre, constant + slope * at + curvature * at**2


def _minimum(fit: _Parabola, flops: float, runs: int, of: int, sizes: Vector, losses: Vector) -> Minimum:
    log_size, loss = fit.best
    size, half = math.exp(log_size), math.sqrt(FLAT * loss / fit.coefficients[2])
    flat = Interval(size * math.exp(-half), size * math.exp(half))
    return Minimum(flops, runs, of, "", size, flops / (6 * size), loss, flat,
                   interval_of(np.exp(sizes).tolist()), interval_of(losses.tolist()))  # fmt: skip


# ---- noise


def _noisy(residuals: Vector, constants: int, losses: Vector, count: int, seed: int) -> tuple[Vector, float]:
    """`count` copies of `losses` with relative noise like that of `residuals`, and the noise's spread.

    The spread of each set is itself drawn, since that of few residuals is hardly known: a Student distribution.
    None where no residual is left to know it from.
    """
    freedom = len(residuals) - constants
    squares = float(residuals @ residuals)
    noise = math.sqrt(squares / freedom) if freedom > 0 else 0.0
    if freedom < 1 or not count:
        return np.zeros((0, len(losses))), noise
    draw = np.random.default_rng(seed)
    spread = np.sqrt(squares / draw.chisquare(freedom, (count, 1)))
    return losses * (1 + spread * draw.standard_normal((count, len(losses)))), noise


# ---- lines


def _exp(value: Vector | float) -> Vector:
    """exp without overflow: few noisy budgets may give any power."""
    bounded: Vector = np.exp(np.clip(value, -690, 690))
    return bounded


def _line(flops: Vector, values: Vector) -> Vector:
    """Constant and slope of `values` (..., budgets) against log C, by least squares: (..., 2)."""
    design = np.stack([np.ones_like(flops), np.log(flops)], 1)
    solved: Vector = values @ np.linalg.pinv(design).T
    return solved


def _power(flops: Vector, logs: Vector, draws: Vector) -> Power:
    constant, exponent = _line(flops, logs)
    return Power(float(constant), float(exponent), _line(flops, draws))


def _held(
    flops: Vector, losses: Vector, draws: Vector, noise: float, unit: Unit, given: tuple[float, float] | None, seed: int
) -> tuple[Frontier | None, str]:
    """The frontier through losses (budgets) and their draws (draws, budgets)."""
    low, high = given or IRREDUCIBLE[unit]
    if len(flops) < LEAST_BUDGETS:
        return None, f"a frontier takes the minima of at least {LEAST_BUDGETS} budgets, not {len(flops)}"
    if problem := _outside(low, high, float(losses.min()), unit):
        return None, problem
    middle = (low + high) / 2
    constant, slope = _line(flops, np.log(losses - middle))
    if slope >= 0:
        return None, "the loss at the minima does not fall with compute"
    fitted = middle + np.exp(constant + slope * np.log(flops))
    rms = math.sqrt(float(np.mean((fitted / losses - 1) ** 2)))
    draws, misfit = _with_misfit(draws, fitted / losses - 1, seed + 2)
    noise, draws = math.hypot(noise, misfit), np.maximum(draws, _LEAST * losses)
    drawn = np.random.default_rng(seed + 1).uniform(low, high, (len(draws), 1))
    lines = _line(flops, np.log(np.maximum(draws - drawn, 1e-9)))
    frontier = np.concatenate([drawn, lines * [1, -1]], 1)
    free, free_draws = math.nan, np.zeros(0)
    if len(flops) > 3:
        free = float(_free(flops, losses[None])[0])
        free_draws = _free(flops, draws)
    interval = interval_of(free_draws.tolist())
    held = Interval(low, high)
    return Frontier(unit, middle, held, math.exp(constant), -float(slope), len(flops), rms, noise, frontier, free,
                    interval), ""  # fmt: skip


def _with_misfit(draws: Vector, errors: Vector, seed: int) -> tuple[Vector, float]:
    """The draws with the scatter that the minima have about the frontier beyond that of the draws, and its spread."""
    freedom = len(errors) - 2
    if freedom < 1 or not len(draws):
        return draws, 0.0
    lacking = float(errors @ errors) / freedom - float(np.mean((draws.std(0) / draws.mean(0)) ** 2))
    if lacking <= 0:
        return draws, 0.0
    draw = np.random.default_rng(seed)
    spread = np.sqrt(lacking * freedom / draw.chisquare(freedom, (len(draws), 1)))
    return draws * (1 + spread * draw.standard_normal(draws.shape)), math.sqrt(lacking)


def _outside(low: float, high: float, lowest: float, unit: Unit) -> str:
    if high < lowest:
        return ""
    held = f"{low:g} to {high:g}" if low < high else f"{low:g}"
    return (
        f"E is held at {held} {unit}, which is not below the lowest loss {lowest:.4g}: give a range that is, with"
        " --irreducible LOW,HIGH"
    )


def _free(flops: Vector, losses: Vector) -> Vector:
    """E of least relative squares for each row of losses (draws, budgets), by golden-section search."""

    def squares(E: Vector) -> Vector:
        line = _line(flops, np.log(losses - E[:, None]))
        fitted = E[:, None] + np.exp(line[:, :1] + line[:, 1:] * np.log(flops))
        total: Vector = ((fitted / losses - 1) ** 2).sum(1)
        return total

    low, high = np.zeros(len(losses)), losses.min(1) * (1 - 1e-6)
    for _ in range(_STEPS):
        width = (math.sqrt(5) - 1) / 2 * (high - low)
        left = squares(high - width) <= squares(low + width)
        low, high = np.where(left, low, high - width), np.where(left, low + width, high)
    middle: Vector = (low + high) / 2
    return middle
