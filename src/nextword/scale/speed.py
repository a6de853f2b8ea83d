"""How long the runs of a sweep take: some steps of a few sizes are timed, and those between interpolated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace

import torch

from ..base.cores import cores
from ..data import Dataset
from ..spec import ModelKind
from ..train.evaluate import MOST
from ..train.timing import time_steps
from .cells import config_of
from .design import LEAST_STEPS, Cell, SweepDesign, planned, shape_of, work
from .table import Row

_START_SECONDS = 3.0  # of a process: imports, the model, writing it
_FORWARD = 1 / 3  # of the time that training takes for a token
_SIZES, _LARGEST = (2e4, 1e5, 5e5, 2e6), 2  # M, and how many of them are timed on all cores
_TOKENS = 1024  # of a step that is timed
_SECONDS = 0.5  # of timing, for each
_FEWEST = 4  # runs that say more than what was timed before them


@dataclass(frozen=True)
class Timed:
    """A model that was timed on one thread: M, seconds a token with all of a run's processes, and seconds an update."""

    kind: ModelKind
    size: float
    token: float
    update: float


@dataclass(frozen=True)
class Ended:
    """A run that ended: its cell, the steps it trained, and the seconds from its start to its end."""

    row: Row
    steps: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """The speed of a sweep's runs on this machine, as timed before it, or `learned` from runs.

    `together`: how many times faster the hold-out run is, which has all the cores to itself.
    """

    timed: tuple[Timed, ...]
    workers: int = 1
    together: float = 1.0
    val_tokens: int = 0
    start: float = _START_SECONDS
    pace: float = 1.0  # times the seconds that were timed

    def seconds(self, cell: Cell, steps: float | None = None) -> float:
        """Seconds of a run, or of some steps of it, with its start and its evaluation."""
        return self.training(cell, steps) + self.around(cell)

    def training(self, cell: Cell, steps: float | None = None) -> float:
        """Seconds of a run's steps, or of some of them."""
        token, update = self._at(cell.kind, cell.size)
        seconds = (cell.steps if steps is None else steps) * (cell.batch_tokens * token + update)
        return self.pace * seconds / self._threads(cell)

    def around(self, cell: Cell) -> float:
        """Seconds of a run's start, evaluation and end."""
        token, _ = self._at(cell.kind, cell.size)
        return self.start + self.pace * _FORWARD * token * min(self.val_tokens, MOST) / self._threads(cell)

    def total(self, design: SweepDesign) -> float:
        """Seconds of the whole sweep: the hold-out run has to wait for the others."""
        times = [(cell.role, self.seconds(cell, steps)) for cell, steps in planned(design)]
        alone = sum(seconds for role, seconds in times if role == "hold-out")
        return self.side_by_side(seconds for role, seconds in times if role != "hold-out") + alone

    def side_by_side(self, seconds: Iterable[float]) -> float:
        """When the last of some runs ends, which are started in order, as many at once as there are workers."""
        busy = [0.0] * self.workers
        for one in seconds:
            heapreplace(busy, busy[0] + one)
        return max(busy)

    def learned(self, runs: Sequence[Ended]) -> Speed:
        """The speed by what runs took, whose steps were timed before."""
        runs = [run for run in runs if run.row.status == "done"]
        before = replace(self, pace=1.0, start=0.0)
        timed = sum(before.training(run.row.cell) for run in runs)
        if len(runs) < _FEWEST or not timed:
            return self
        paced = replace(before, pace=sum(run.row.seconds for run in runs) / timed)
        starts = [run.seconds - run.row.seconds * run.steps / run.row.cell.steps - paced.around(run.row.cell)
                  for run in runs]  # fmt: skip
        return replace(paced, start=max(0.0, sum(starts) / len(starts)))

    def hold_out_as(self, cell: Cell, step: float) -> Speed:
        """The speed whose hold-out run `cell` takes `step` seconds a step; the same where that is NaN."""
        if not math.isfinite(step):
            return self
        alone = replace(self, together=1.0)
        return replace(self, together=alone.training(cell, 1) / step)

    def _threads(self, cell: Cell) -> float:
        return self.together if cell.role == "hold-out" else 1.0

    def _at(self, kind: ModelKind, size: float) -> tuple[float, float]:
        """Seconds a token and an update, on straight lines between the logs of what was timed."""
        points = sorted((point for point in self.timed if point.kind == kind), key=lambda point: point.size)
        if size <= points[0].size or len(points) == 1:
            return points[0].token * max(1.0, size / points[0].size), points[0].update
        high = next((number for number, point in enumerate(points) if point.size >= size), len(points) - 1)
        one, two = points[max(1, high) - 1], points[max(1, high)]
        share = math.log(size / one.size) / math.log(two.size / one.size)
        return one.token * (two.token / one.token) ** share, one.update * (two.update / one.update) ** share


def measure(design: SweepDesign, data: Dataset, workers: int, log: Callable[[str], None] = lambda text: None) -> Speed:
    """Time some steps of each kind at a few sizes. `workers`: runs at once.

    Until the first runs end, K processes of a run are assumed to be K times as fast as one.
    """
    timed: list[Timed] = []
    together: list[float] = []
    device, threads = torch.device(design.device), 1
    if design.device == "cpu":
        threads = max(1, min(workers, cores() // design.processes))
    for kind in design.kinds:
        specs = {spec: work(spec, design.context) for size in _SIZES
                 for spec in [shape_of(kind, size, design.vocabulary, design.context)]}  # fmt: skip
        log(f"timing some steps of {len(specs)} sizes of {kind}")
        for spec, size in specs.items():
            cell = Cell("grid", spec, size, 1.0, LEAST_STEPS, _TOKENS, 1e-3)
            config = config_of(cell, replace(design, batch_size=max(1, _TOKENS // design.context), processes=1))
            step = time_steps(config, device, 1, seconds=_SECONDS)
            tokens = config.train.micro_batch * design.context * design.processes
            timed.append(Timed(kind, size, step.micro_batch / tokens, step.update))
            if threads > 1 and kind == design.kinds[0] and size in sorted(specs.values())[-_LARGEST:]:
                faster = time_steps(config, device, threads, seconds=_SECONDS)
                together.append(max(1.0, step.step(config.train) / faster.step(config.train)))
    return Speed(tuple(timed), workers, min(together, default=1.0), data.val.tokens)
