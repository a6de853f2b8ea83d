"""The table of a sweep's runs, read from their folders whenever it is asked for."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..plan import parameters
from ..train.metrics import progress_of, rejected_steps
from ..train.run_dir import RECORD, is_locked, read_report
from .design import Cell

Status = Literal["waiting", "running", "stopped", "done", "diverged", "failed"]
LOG = "worker.log"  # of a run's folder


@dataclass(frozen=True)
class Row:
    """A cell and what is known of its run. `share` is done; `loss` in bits a byte, NaN until it is finished."""

    cell: Cell
    status: Status
    share: float = 0.0
    loss: float = math.nan
    nats: float = math.nan
    seconds: float = math.nan
    reason: str = ""  # why it diverged or failed

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to run."""
        return self.status in ("done", "diverged")


def row_of(cell: Cell, runs: Path) -> Row:
    """The state of a cell's run in `runs`."""
    folder = runs / cell.name
    if not (folder / RECORD).exists():
        return Row(cell, "waiting")
    measured = read_report(folder)
    if measured is not None and measured.steps >= cell.steps:
        return Row(cell, "done", 1.0, measured.bits_per_byte, measured.nats_per_token, measured.seconds)
    steps, stopped = progress_of(folder)
    share = steps / cell.steps
    if stopped:
        return Row(cell, "diverged", share, reason=str(rejected_steps(folder)[-1]["reason"]))
    if is_locked(folder):
        return Row(cell, "running", share)
    failure = _failure(folder)
    return Row(cell, "failed", share, reason=failure) if failure else Row(cell, "stopped", share)


def _failure(folder: Path) -> str:
    with suppress(OSError):
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def table_csv(rows: Iterable[Row], seed: int) -> str:
    """The table as CSV, for `nextword plan laws --data` too."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {name: value(row) for name, value in _COLUMNS.items()}
        writer.writerow(values | {"seed": seed + row.cell.seed})
    return text.getvalue()


def _known(value: float) -> float | str:
    return value if math.isfinite(value) else ""


_COLUMNS: dict[str, Any] = {
    "subset": lambda row: row.cell.role,
    "kind": lambda row: row.cell.kind,
    "M": lambda row: row.cell.size,
    "parameters": lambda row: parameters(row.cell.spec).total,
    "matrices": lambda row: parameters(row.cell.spec).multiplying,
    "flops_per_token": lambda row: 6 * row.cell.size,
    "tokens": lambda row: row.cell.tokens,
    "flops": lambda row: row.cell.flops,
    "budget": lambda row: row.cell.budget,
    "steps": lambda row: row.cell.steps,
    "learning_rate": lambda row: row.cell.rate,
    "bits_per_byte": lambda row: _known(row.loss),
    "nats_per_token": lambda row: _known(row.nats),
    "seconds": lambda row: _known(row.seconds),
    "seed": lambda row: row.cell.seed,
    "status": lambda row: row.status,
    "reason": lambda row: row.reason,
}
