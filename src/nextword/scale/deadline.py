"""A sweep of minutes ends on time: what has run says how long the rest takes, and what is open is cut to what is left.

The hold-out run takes what time is left, within limits. Where that is too little for the smallest, cells at the flanks
are left out, then the top budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .design import EPOCHS, HOLD_OUT, MOST_HOLD_OUT, RATES, Cell, SweepDesign, trained_steps

if TYPE_CHECKING:
    from ..spec import ModelKind
    from .law import KindLaw
    from .speed import Speed
    from .sweep import Sweep

ROOM = 1.25  # times the smallest hold-out run: what is planned, so that a slower sweep has something to give
CLOSING = 5.0  # seconds of the last fit and the report
_SLOWER = 1.08  # times the seconds timed: a run that has all cores waits for whatever else is on one of them
_FEWEST_SIZES = 4  # of a budget that cells are left out of
_FEWEST_BUDGETS = 3
_HALVINGS = 8  # of the hold-out run's limits: to a hundredth


@dataclass
class Deadline:
    """The time of a sweep, in seconds: `spent` by earlier calls, and the time since this object was made."""

    seconds: float
    spent: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._since = self.clock()

    @property
    def elapsed(self) -> float:
        return self.spent + self.clock() - self._since

    @property
    def left(self) -> float:
        """Seconds for runs: those that the end of the sweep takes are set aside."""
        return self.seconds - self.elapsed - CLOSING

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within does not count."""
        start = self.clock()
        yield
        self._since += self.clock() - start


def seconds_left(sweep: Sweep, speed: Speed) -> float:
    """Seconds that the rest of a sweep takes."""
    design, rows = sweep.design, {row.cell.name: row for row in sweep.rows()}

    def left(cell: Cell, steps: int) -> float:
        row = rows.get(cell.name)
        if row is None or row.status in ("waiting", "stopped", "failed"):
            return speed.seconds(cell, steps if row is None else min(steps, (1 - row.share) * cell.steps))
        return speed.seconds(cell, (1 - row.share) * cell.steps) - speed.start if row.status == "running" else 0.0

    runs: list[float] = []
    for kind in design.kinds:
        if sweep.rate_rule(kind) is None:
            cells = sweep.rate_cells(kind)
            further = max(0, RATES * len(design.calibration(kind)) - len(cells))
            runs += [*(left(cell, cell.steps) for cell in cells), *[speed.seconds(cells[0])] * further]
        runs += [left(cell, steps) for cell, steps in trained_steps(sweep.grid(kind))]
    runs += [left(cell, cell.steps) for cell in sweep.repeats()]
    if not design.hold_out:
        return speed.side_by_side(runs)
    held = sweep.hold_out or design.expected_hold_out(design.kinds[0])
    return speed.side_by_side(runs) + _SLOWER * left(held, held.steps)


def shortened(sweep: Sweep, speed: Speed, seconds: float) -> SweepDesign:
    """The design that ends within `seconds` from now with the smallest hold-out run, or comes nearest to that.

    Left out are repeated runs, then cells far from the optimum, then the top budget, if none of its runs has begun.
    """

    def late(design: SweepDesign) -> bool:
        return seconds_left(replace(sweep, design=design.with_hold_out(HOLD_OUT)), speed) > seconds

    design = sweep.design
    if not late(design):
        return design
    best = _optima(sweep)
    while late(design) and (cell := _least_needed(replace(sweep, design=design), best)) is not None:
        design = design.without([cell])
    lower = _without_top(sweep) if late(design) else None
    return shortened(replace(sweep, design=lower), speed, seconds) if lower else design


def hold_out_in_time(design: SweepDesign, law: KindLaw, speed: Speed, seconds: float) -> SweepDesign:
    """The design whose hold-out run takes `seconds`, as near to that as its limits and the text allow."""

    def fits(times: float) -> bool:
        larger = design.with_hold_out(times)
        cell = larger.hold_out_of(law.kind, law.best_size(larger.hold_out))
        return _SLOWER * speed.seconds(cell) <= seconds and cell.tokens <= EPOCHS * design.unique_tokens

    low, high = HOLD_OUT, MOST_HOLD_OUT
    if fits(high):
        return design.with_hold_out(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return design.with_hold_out(low)


def _optima(sweep: Sweep) -> dict[tuple[ModelKind, float], float]:
    """The best size of each kind and budget, measured where it can be."""
    found = {}
    for kind in sweep.design.kinds:
        law = sweep.law(kind)
        for budget in sweep.design.budgets:
            known = law is not None and not law.problem
            found[kind, budget] = law.best_size(budget) if law and known else sweep.design.expected(budget).parameters
    return found


def _least_needed(sweep: Sweep, best: Mapping[tuple[ModelKind, float], float]) -> Cell | None:
    """A waiting repeat, or the waiting cell farthest from its budget's optimum that has enough others around it."""
    flanks = [(math.inf, cell) for cell in reversed(sweep.repeats())]
    for kind in sweep.design.kinds:
        cells = sweep.grid(kind)
        for cell in cells:
            others = [each.size for each in cells if each.budget == cell.budget and each is not cell]
            optimum = best[kind, cell.budget]
            if len(others) >= _FEWEST_SIZES and min(others) < optimum < max(others):
                flanks.append((abs(math.log(cell.size / optimum)), cell))
    waiting = [pair for pair in flanks if sweep.row(pair[1]).status == "waiting"]
    return max(waiting, key=lambda pair: pair[0])[1] if waiting else None


def _without_top(sweep: Sweep) -> SweepDesign | None:
    """The design without its top budget; None if that has begun, or too few would remain."""
    design = sweep.design
    cells = [cell for kind in design.kinds for cell in sweep.grid(kind) if cell.budget == design.budgets[-1]]
    if len(design.budgets) <= _FEWEST_BUDGETS or any(sweep.row(cell).status != "waiting" for cell in cells):
        return None
    return replace(design.without(cells), budgets=design.budgets[:-1]).with_hold_out(HOLD_OUT * ROOM)
