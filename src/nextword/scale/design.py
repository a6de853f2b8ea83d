"""The design of a sweep: which runs, of which sizes and budgets. Pure arithmetic.

Sizes are counted in M = FLOPs a token / 6 (DeepSeek LLM, 2401.02954, section 3): C = 6 M D holds exactly for every
kind. A cell is a run of one size with one budget; the cells of a size share a trunk (train/branches.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from ..base import units
from ..base.fields import Within, check_fields
from ..plan import Optimum, flops
from ..plan.run_config import TrainDtype
from ..plan.shape_search import LARGEST, SMALLEST_WORK, shape_for_flops
from ..spec import ModelKind, ModelSpec
from ..train.planning import expected_optimum, recurrent_like
from ..train.schedules import decay_start

EPOCHS = 4  # most passes over the text: more would mix the law of repeated data in (Muennighoff et al. 2023)
LEAST_RATIO, MOST_RATIO = 3.0, 300.0  # tokens over M: the law's form is wrong far from the optimum
DECAY = 0.2  # share of a run's steps (Hägele et al. 2024, 2405.18392)
HOLD_OUT, MOST_HOLD_OUT = 4.0, 10.0  # times the top budget, at least and at most
LEAST_STEPS = 1000  # in shorter runs the loss follows the number of updates, not a power law
RATES = 5  # runs of a scan of learning rates, about
_PARTS = 10  # the steps of a run of a thousand and more are a multiple of it: it has as many checkpoints
_FAR_OFF = 0.35  # in log M: no shape is near the size

Role = Literal["rate", "grid", "seed", "half-rate", "hold-out"]
DeviceType = Literal["cpu", "cuda"]
Amount = Annotated[float, Within(above=0)]


@dataclass(frozen=True)
class Cell:
    """A run of a sweep. `budget` is its column's, in FLOPs; `flops` are exact."""

    role: Role
    spec: ModelSpec
    size: float  # M
    budget: float
    steps: int
    batch_tokens: int
    rate: float = 0.0
    seed: int = 0  # added to the design's

    @property
    def kind(self) -> ModelKind:
        return self.spec.kind

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> float:
        return 6 * self.size * self.tokens

    @property
    def ratio(self) -> float:
        """D/M, tokens over size."""
        return self.tokens / self.size

    @property
    def stable_steps(self) -> int:
        """Steps before the learning rate decays."""
        return decay_start(self.steps, DECAY)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints, one of which is where the rate begins to decay."""
        return self.steps // _PARTS if self.steps % _PARTS == 0 else self.stable_steps

    @property
    def name(self) -> str:
        """The name of its folder."""
        name = f"{self.kind}-{units.compact_count(self.size)}-{self.budget:.3g}"
        ends = {"rate": f"-rate-{self.rate:g}", "grid": "", "seed": f"-seed-{self.seed}"}
        return name + ends.get(self.role, f"-{self.role}")


@dataclass(frozen=True)
class SweepDesign:
    """What a sweep runs, and what is equal in all of its runs."""

    kinds: tuple[ModelKind, ...]
    sizes: tuple[float, ...]  # M that shapes are looked for; the shapes' own differ a little
    budgets: tuple[float, ...]  # FLOPs, ascending
    hold_out: Annotated[float, Within(least=0)]  # FLOPs; 0: none
    vocabulary: Annotated[int, Within(least=1)]
    context: Annotated[int, Within(least=1)]
    batch_size: Annotated[int, Within(least=1)]  # rows
    warmup_steps: Annotated[int, Within(least=1)]
    unique_tokens: Annotated[int, Within(least=1)]  # of training text
    bytes_per_token: Amount
    seed: Annotated[int, Within(least=0)] = 0
    dtype: TrainDtype = "fp32"
    device: DeviceType = "cpu"  # of every run
    processes: Annotated[int, Within(least=1)] = 1  # of every run; on GPUs each has one
    scanned: tuple[float, ...] = ()  # sizes of the learning-rate scans, with the FLOPs `scan_budget`
    scan_budget: Annotated[float, Within(least=0)] = 0.0
    least_steps: Annotated[int, Within(least=1)] = LEAST_STEPS
    seeds: Annotated[int, Within(least=0)] = 0  # further ones, of two cells
    half_rate: bool = False  # whether a cell is run at half its learning rate too
    left_out: tuple[str, ...] = ()  # names of cells that there was no time for

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def batch_tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.context

    def specs(self, kind: ModelKind) -> list[ModelSpec]:
        """The shapes of a kind, by size; a size that no shape comes near is left out."""
        found: dict[float, ModelSpec] = {}
        for size in sorted(self.sizes):
            spec = shape_of(kind, size, self.vocabulary, self.context)
            if abs(math.log(work(spec, self.context) / size)) <= _FAR_OFF:
                found[work(spec, self.context)] = spec
        return [found[size] for size in sorted(found)]

    def cell(self, role: Role, spec: ModelSpec, budget: float, rate: float = 0.0) -> Cell:
        """The run of a shape that comes nearest to a budget; a hold-out run is not below it."""
        size = work(spec, self.context)
        exact = budget / (6 * size * self.batch_tokens)
        parts = _PARTS if exact >= LEAST_STEPS else 1
        whole = math.ceil(exact / parts) if role == "hold-out" else round(exact / parts)
        steps = parts * max(1, whole)
        return Cell(role, spec, size, budget, steps, self.batch_tokens, rate)

    def grid(self, kind: ModelKind) -> list[Cell]:
        """The cells of a kind, in the order they are run in: by budget, those nearest to the expected optimum first.

        So a stop at any moment leaves whole budgets, and a trunk only grows. Rates are not chosen yet.
        """
        return list(self._grids[kind])

    @cached_property
    def _grids(self) -> dict[ModelKind, list[Cell]]:
        return {kind: self._kept(self._useful(kind)) for kind in self.kinds}

    def _useful(self, kind: ModelKind) -> list[Cell]:
        specs = self.specs(kind)
        cells = [self.cell("grid", spec, budget) for budget in self.budgets for spec in specs]
        return sorted(filter(self.is_useful, cells), key=lambda cell: (cell.budget, abs(self._off(cell))))

    def repeats(self) -> list[Cell]:
        """Cells of the first kind that are run again: two with other seeds, the largest at half its learning rate.

        They are the nearest to the expected optimum of the two lowest budgets, and of the top one.
        """
        cells = self.grid(self.kinds[0])
        nearest = {cell.budget: cell for cell in reversed(cells)}
        budgets = sorted(nearest)
        found = [replace(nearest[budget], role="seed", seed=1 + number)
                 for budget in budgets[:2] for number in range(self.seeds)]  # fmt: skip
        if self.half_rate:
            found += [replace(nearest[budget], role="half-rate") for budget in budgets[-1:]]
        return self._kept(found)

    def _kept(self, cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.name not in self.left_out]

    def is_useful(self, cell: Cell) -> bool:
        """Whether a cell may enter a fit: neither far from any optimum, nor too short, nor on text seen too often."""
        enough = cell.steps >= self.least_steps and cell.tokens <= EPOCHS * self.unique_tokens
        return enough and LEAST_RATIO <= cell.ratio <= MOST_RATIO

    def calibration(self, kind: ModelKind) -> list[Cell]:
        """The runs whose learning rate is looked for, of the two smallest sizes and the lowest budget."""
        specs = [shape_of(kind, size, self.vocabulary, self.context) for size in self.scanned]
        return [self.cell("rate", spec, self.scan_budget) for spec in dict.fromkeys(specs)]

    def expected(self, budget: float) -> Optimum:
        """The optimum before anything was measured."""
        return expected_optimum(budget, self.bytes_per_token)

    def expected_hold_out(self, kind: ModelKind) -> Cell:
        """The hold-out run, as far as it is known before the others were made."""
        return self.hold_out_of(kind, self.expected(self.hold_out).parameters)

    def hold_out_of(self, kind: ModelKind, size: float) -> Cell:
        """The hold-out run of a model of about `size` = M."""
        return self.cell("hold-out", shape_of(kind, size, self.vocabulary, self.context), self.hold_out)

    def widened(self, budgets: Sequence[float] = (), sizes: Sequence[float] = ()) -> SweepDesign:
        """The design with more budgets and sizes; what has run is not touched."""
        return replace(
            self,
            budgets=tuple(sorted({*self.budgets, *budgets})),
            sizes=tuple(sorted({*self.sizes, *sizes})),
        )

    def without(self, cells: Iterable[Cell]) -> SweepDesign:
        """The design without some cells of its grid."""
        return replace(self, left_out=(*self.left_out, *(cell.name for cell in cells)))

    def with_hold_out(self, times: float) -> SweepDesign:
        """The design with a hold-out run of so many times the top budget."""
        return replace(self, hold_out=times * self.budgets[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_plain` reads it back."""
        return asdict(self)

    def _off(self, cell: Cell) -> float:
        return math.log(cell.size / self.expected(cell.budget).parameters)


@cache
def work(spec: ModelSpec, context: int) -> float:
    """M: exact training FLOPs a token / 6."""
    return flops(spec, context).per_token / 6


@cache
def shape_of(kind: ModelKind, size: float, vocabulary: int, context: int) -> ModelSpec:
    """The shape nearest to `size` = M."""
    spec = shape_for_flops(6 * min(max(size, SMALLEST_WORK), LARGEST), vocabulary, context)
    return spec if kind == "transformer" else recurrent_like(spec, kind, "flops")


def trained_steps(cells: Iterable[Cell]) -> list[tuple[Cell, int]]:
    """Each cell of a grid and the steps that it adds to the trunk of its size, in order."""
    trunks: dict[tuple[ModelKind, float, float], int] = {}
    found = []
    for cell in cells:
        key = (cell.kind, cell.size, cell.rate)
        found.append((cell, cell.steps - trunks.get(key, 0)))
        trunks[key] = max(trunks.get(key, 0), cell.stable_steps)
    return found


def planned(design: SweepDesign) -> list[tuple[Cell, int]]:
    """Every run of a sweep, as far as it is known beforehand, and the steps that it adds to others."""
    found: list[tuple[Cell, int]] = []
    for kind in design.kinds:
        found += [(cell, cell.steps) for cell in design.calibration(kind) for _ in range(RATES)]
        found += trained_steps(design.grid(kind))
    found += [(cell, cell.steps) for cell in design.repeats()]
    if design.hold_out:
        cell = design.expected_hold_out(design.kinds[0])
        found.append((cell, cell.steps))
    return found
