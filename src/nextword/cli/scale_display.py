"""How a sweep is shown: its plan, a live matrix of sizes and budgets, and its results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from ..base import units
from ..base.units import compact_count
from ..plan import parameters
from ._console import messages
from ._sections import Section, line, warning
from ._table import FittingTable, plain_table
from .plan_isoflops import check_sections, scaling_sections

if TYPE_CHECKING:
    from ..scale.design import Cell
    from ..scale.report import Findings
    from ..scale.sweep import Sweep
    from ..scale.table import Row
    from ..spec import ModelKind

_QUIET_SECONDS = 15.0  # between lines where there is no terminal
_MARKS = {"waiting": "·", "diverged": "diverged", "failed": "failed"}


def plan_sections(sweep: Sweep) -> Iterator[Section]:
    """What a sweep will run, what it costs, and what it will predict."""
    from ..scale.create import flops_of
    from ..scale.design import EPOCHS, HOLD_OUT, MOST_HOLD_OUT, planned

    design, speed = sweep.design, sweep.speed
    for kind in design.kinds:
        yield Section(_planned(sweep, kind))
        yield line("")
    cells = [cell for cell, _ in planned(design)]
    grid = [cell for cell in cells if cell.role == "grid"]
    yield line(
        f"{len(grid)} cells of {min(cell.steps for cell in grid):,} to {max(cell.steps for cell in grid):,} steps of"
        f" {design.batch_tokens:,} tokens; vocabulary {design.vocabulary:,}, context {design.context:,}, warm-up"
        f" {design.warmup_steps * design.batch_tokens:,} tokens, one trunk for each size"
    )
    scans = [cell for kind in design.kinds for cell in design.calibration(kind)]
    sizes = ", ".join(dict.fromkeys(compact_count(cell.size) for cell in scans))
    yield line(f"learning rates: four or more at M {sizes}, with {design.scan_budget:.3g} FLOPs each")
    if design.hold_out:
        held = design.expected_hold_out(design.kinds[0])
        yield line(
            f"hold-out: {held.flops:.3g} FLOPs, about M {compact_count(held.size)} on"
            f" {units.format_count(held.tokens)} tokens, predicted before it is made"
        )
        if sweep.deadline is not None and sweep.prediction is None:
            yield line(f"it takes what time is left, with {HOLD_OUT:g} to {MOST_HOLD_OUT:g} times the top budget")
    most = max(cell.tokens for cell in cells) / design.unique_tokens
    yield line(
        f"text: {units.format_count(design.unique_tokens)} tokens, seen up to {most:.2g} times (at most {EPOCHS})"
    )
    seconds = units.format_seconds(speed.total(design)) if speed else "unknown"
    workers = f" by {speed.workers} at once" if speed and speed.workers > 1 else ""
    yield line(f"in all {flops_of(design):.3g} FLOPs, about {seconds}{workers}", "bold")


def _planned(sweep: Sweep, kind: ModelKind) -> FittingTable:
    """Tokens a unit of size, D/M, of every cell."""
    design = sweep.design
    table = plain_table(f"{kind}, D/M", "parameters", *(f"{budget:.3g}" for budget in design.budgets), least=((1,),))
    for cells in _by_size(design.grid(kind)):
        ratios = {cell.budget: f"{cell.ratio:.0f}" for cell in cells}
        table.add_row(f"M {compact_count(cells[0].size)}", units.format_count(parameters(cells[0].spec).total),
                      *(ratios.get(budget, "") for budget in design.budgets))  # fmt: skip
    return table


def _by_size(cells: Iterable[Cell]) -> list[list[Cell]]:
    sizes: dict[float, list[Cell]] = {}
    for cell in cells:
        sizes.setdefault(cell.size, []).append(cell)
    return [sizes[size] for size in sorted(sizes)]


def matrix(sweep: Sweep, kind: ModelKind) -> FittingTable:
    """The grid of a kind: the loss of each cell, or how far it is."""
    budgets = sweep.design.budgets
    table = plain_table(kind, *(f"{budget:.3g}" for budget in budgets))
    for cells in _by_size(sweep.grid(kind)):
        shown = {cell.budget: _cell(sweep.row(cell)) for cell in cells}
        table.add_row(f"M {compact_count(cells[0].size)}", *(shown.get(budget, "") for budget in budgets))
    return table


def rates(sweep: Sweep, kind: ModelKind) -> FittingTable:
    """The scans of learning rates: the loss of each."""
    table = plain_table("learning rate", "M", "bits/byte")
    for cell in sweep.rate_cells(kind):
        table.add_row(f"{cell.rate:g}", compact_count(cell.size), _cell(sweep.row(cell)))
    return table


def _cell(row: Row) -> str:
    if row.status == "done":
        return f"{row.loss:.4f}"
    return _MARKS.get(row.status, f"{row.share:.0%}")


def result_sections(sweep: Sweep, found: Findings, flops: float | None = None) -> Iterator[Section]:
    """What a sweep's finished runs say."""
    from ..scale.report import assumptions, projection, sentences

    for kind in sweep.design.kinds:
        yield Section(rates(sweep, kind))
        yield line("")
        yield Section(matrix(sweep, kind))
        yield line("")
        if (law := found.laws.get(kind)) is not None:
            ahead = [projection(law, flops).flops] if not law.problem else [law.top]
            yield from scaling_sections(law.scaling, ahead, law.top)
            if not law.problem:
                yield from check_sections(law.checks, law.scaling.unit)
            yield line("")
    for row in sweep.rows():
        if row.reason:
            yield warning(f"{row.cell.name} {row.status}: {row.reason}")
    yield from (line(text, "dim") for text in assumptions(sweep, found))
    yield from (line(text, "bold") for text in sentences(sweep, found, flops))


class SweepDisplay:
    """Progress on standard error: a matrix on a terminal, otherwise a line for each run that ends."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.last = time.monotonic()
        self._ended = {row.cell.name for row in sweep.rows() if row.settled}
        self._live: Any = None

    def __enter__(self) -> SweepDisplay:
        if messages().is_terminal and not messages().is_dumb_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._shown, console=messages(), transient=True, refresh_per_second=1)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self) -> None:
        """Look at the sweep; called a few times a second."""
        if self._live is not None:
            return
        rows = self.sweep.rows()
        for row in rows:
            if row.settled and row.cell.name not in self._ended:
                self._ended.add(row.cell.name)
                self.say(f"{row.cell.name}: {_cell(row)}{' bits a byte' if row.status == 'done' else ''}")
        if time.monotonic() - self.last > _QUIET_SECONDS:
            self.say(self._progress(rows))

    def say(self, text: str) -> None:
        """Print a line, above the matrix where there is one."""
        self.last = time.monotonic()
        messages().print(text, style="dim", soft_wrap=True)

    def _progress(self, rows: list[Row]) -> str:
        from ..scale.deadline import seconds_left

        running = [f"{row.cell.name} {row.share:.0%}" for row in rows if row.status == "running"]
        ended = sum(row.settled for row in rows)
        speed = self.sweep.learned
        left = f"; about {units.format_seconds(seconds_left(self.sweep, speed))} left" if speed else ""
        return f"{ended} of {len(rows)} runs done; {', '.join(running) or 'none running'}{left}"

    def _shown(self) -> Group:
        rows = self.sweep.rows()
        parts: list[Any] = []
        for kind in self.sweep.design.kinds:
            if self.sweep.rate_rule(kind) is None:
                parts.append(rates(self.sweep, kind))
            else:
                parts.append(matrix(self.sweep, kind))
        held = next((row for row in rows if row.cell.role == "hold-out"), None)
        if held is not None:
            what = f"hold-out, M {compact_count(held.cell.size)}, {held.cell.flops:.3g} FLOPs"
            parts.append(Text(f"{what}: {_cell(held)}"))
        return Group(*parts, Text(self._progress(rows), style="dim"))
