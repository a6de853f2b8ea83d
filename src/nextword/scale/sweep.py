"""A sweep's folder, and the order in which its runs are made.

scale.json        the design, the data and its fingerprint, versions
runs/             a run folder for each cell
prediction.json   what was predicted of the hold-out run, written before it started
table.csv, law.json, best.toml, report.html   derived from the runs whenever asked
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..base import UsageError, atomic_write, read_json
from ..base.fields import finite, from_plain
from ..data import open_dataset
from ..plan.run_config import DataConfig
from ..spec import ModelKind
from ..train.checkpoint import folder_name
from ..train.planning import Machine
from ..train.run_dir import RunRecord, differences, locked_run
from . import law as laws
from .cells import Place, make_folder
from .design import Cell, SweepDesign
from .law import KindLaw
from .rates import RateRule, best_rate, more, rule, scan
from .speed import Speed
from .table import Row, row_of, write_table

FORMAT = "nextword-sweep/1"
STATE, PREDICTION, TABLE = "scale.json", "prediction.json", "table.csv"
_QUIET_SECONDS = 0.3  # between looks at the running processes


class Workers(Protocol):
    """Where runs are made: each in a process of its own, which resumes what it finds in the run's folder."""

    count: int  # of runs at once

    @property
    def running(self) -> set[Path]:
        """The folders of the runs under way."""

    def has_room(self, memory: float) -> bool:
        """Whether a run that takes `memory` bytes may start now."""

    def start(self, folder: Path, memory: float, threads: int) -> None:
        """Begin to train the run in `folder`."""

    def wait(self, seconds: float) -> dict[Path, int]:
        """The runs that ended, with 0 or another exit code, after at most `seconds`."""

    def close(self) -> None:
        """End all runs, each with a checkpoint."""


@dataclass
class Sweep:
    """A sweep in its folder. What is known of its runs is read from theirs."""

    folder: Path
    design: SweepDesign
    place: Place
    request: dict[str, Any]  # the options it was started with
    speed: Speed | None = None
    _rows: dict[str, Row] = field(default_factory=dict)  # of settled cells

    # ---- the folder

    def write(self) -> None:
        """Write scale.json."""
        data = {
            "format": FORMAT, "version": __version__, "request": self.request, "design": self.design.to_dict(),
            "data": {"folder": str(self.place.data.folder.resolve()), "fingerprint": self.place.data.fingerprint,
                     "sources": list(self.place.sources), "settings": asdict(self.place.settings)},
            "speed": asdict(self.speed) if self.speed else None,
        }  # fmt: skip
        write_json(self.folder / STATE, data)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep in `folder`. Raises UsageError if there is none, or if its text is gone."""
        path = folder / STATE
        stored = read_json(
            path, f"{folder} holds no sweep: it has no {STATE}. Start one: nextword scale TEXT --minutes 30"
        )
        if (version := stored.get("format")) != FORMAT:
            raise UsageError(f"{path}: the sweep is from another version of nextword ({version!r}, not {FORMAT!r})")
        try:
            design = from_plain(SweepDesign, stored["design"])
            settings = from_plain(DataConfig, stored["data"]["settings"])
            speed = from_plain(Speed, stored["speed"]) if stored.get("speed") else None
            where, fingerprint = stored["data"]["folder"], stored["data"]["fingerprint"]
            sources, request = tuple(stored["data"]["sources"]), dict(stored["request"])
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path}: {error} is missing. Restore the original file") from None
        data = open_dataset(where)
        if data.fingerprint != fingerprint:
            raise UsageError(f"{where} differs from the text that {folder} was started with")
        place = Place(folder / "runs", data, settings, sources)
        return cls(folder, design, place, request, speed)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder until the block or this process ends. Raises UsageError if another process holds it."""
        return locked_run(self.folder, "running this sweep")

    # ---- what is known

    def row(self, cell: Cell) -> Row:
        """The state of a cell's run."""
        known = self._rows.get(cell.name)
        if known is None:
            known = row_of(cell, self.place.runs)
            if known.settled:
                self._rows[cell.name] = known
        return known

    def rows(self) -> list[Row]:
        """The states of all cells that are known so far: rates, grid, hold-out."""
        cells = [cell for kind in self.design.kinds for cell in (*self.rate_cells(kind), *self.grid(kind))]
        hold_out = self.hold_out
        return [self.row(cell) for cell in (*cells, *([hold_out] if hold_out else []))]

    def rate_cells(self, kind: ModelKind) -> list[Cell]:
        """The runs that look for the learning rate; after the first ones more, until the best is bracketed."""
        return [cell for cells in self._scans(kind) for cell in cells]

    def rate_rule(self, kind: ModelKind) -> RateRule | None:
        """The learning rates of a kind; None while they are looked for, or if every run diverged."""
        scans = self._scans(kind)
        if not all(self.row(cell).settled for cells in scans for cell in cells):
            return None
        best = [best_rate(cells[0].size, self._losses(cells)) for cells in scans]
        return rule([each for each in best if each is not None])

    def _scans(self, kind: ModelKind) -> list[list[Cell]]:
        scans = []
        for cell in self.design.calibration(kind):
            cells = [replace(cell, rate=rate) for rate in scan(kind, cell.size, cell.batch_tokens)]
            while all(self.row(each).settled for each in cells) and (rate := more(self._losses(cells))) is not None:
                cells.append(replace(cell, rate=rate))
            scans.append(cells)
        return scans

    def _losses(self, cells: list[Cell]) -> dict[float, float]:
        rows = [self.row(cell) for cell in cells]
        return {row.cell.rate: row.loss if row.status == "done" else float("inf") for row in rows}

    def grid(self, kind: ModelKind) -> list[Cell]:
        """The grid's cells, with their learning rates once these are known, else 0."""
        chosen = self.rate_rule(kind)
        return [replace(cell, rate=chosen.at(cell.size) if chosen else 0.0) for cell in self.design.grid(kind)]

    def law(self, kind: ModelKind) -> KindLaw | None:
        """The law of the cells that are finished by now; None without any."""
        return laws.fit_kind(kind, [self.row(cell) for cell in self.grid(kind)])

    @property
    def prediction(self) -> dict[str, Any] | None:
        """prediction.json: what was predicted of the hold-out run before it started."""
        path = self.folder / PREDICTION
        return read_json(path) if path.exists() else None

    @property
    def hold_out(self) -> Cell | None:
        """The hold-out run, once it is predicted."""
        predicted = self.prediction
        if predicted is None:
            return None
        cell = self.design.hold_out_of(predicted["kind"], predicted["size_sought"])
        return replace(cell, rate=predicted["learning_rate"])

    # ---- running

    def todo(self, running: set[Path], failed: set[Path]) -> list[Cell]:
        """The cells that may start now, most wanted first: rates, then the grid, then the hold-out run alone."""
        found: list[Cell] = []
        for kind in self.design.kinds:
            if self.rate_rule(kind) is None:
                found += self.rate_cells(kind)
            else:
                found += self._with_trunks(self.grid(kind), failed)
        left = [cell for cell in found if not self.row(cell).settled and self._folder(cell) not in running | failed]
        if left or running:
            return left
        self._predict()
        cell = self.hold_out
        return [cell] if cell and not self.row(cell).settled and self._folder(cell) not in failed else []

    def _with_trunks(self, cells: list[Cell], failed: set[Path]) -> list[Cell]:
        """The cells of a grid without those that have to wait for the trunk of their size."""
        ready = []
        for cell in cells:
            shorter = [each for each in cells if each.size == cell.size and each.budget < cell.budget]
            before = max(shorter, key=lambda each: each.budget, default=None)
            if before is None or self.row(before).settled or self._folder(before) in failed or self._has_trunk(before):
                ready.append(cell)
        return ready

    def _has_trunk(self, cell: Cell) -> bool:
        return (self._folder(cell) / "checkpoints" / folder_name(cell.stable_steps)).exists()

    def _folder(self, cell: Cell) -> Path:
        return self.place.runs / cell.name

    def run(self, workers: Workers, machine: Machine, watch: Callable[[], None] = lambda: None) -> None:
        """Run what is left. Whatever happens, the runs under way are stopped with a checkpoint each.

        A run that fails is not tried again in this call. `watch` is called a few times a second.
        """
        failed: set[Path] = set()
        with self.locked(), closing(workers):
            while True:
                waiting = self.todo(workers.running, failed)
                for cell in waiting:
                    if not workers.has_room(0.0):
                        break
                    threads = workers.count if cell.role == "hold-out" else 1
                    trunks = [each for each in self.grid(cell.kind) if each.size == cell.size]
                    folder = make_folder(cell, self.design, self.place, machine, trunks, threads)
                    memory = _planned_memory(folder)
                    if not workers.has_room(memory):
                        break
                    workers.start(folder, memory, threads)
                if not waiting and not workers.running:
                    return
                ended = workers.wait(_QUIET_SECONDS)
                failed |= {folder for folder, code in ended.items() if code}
                if ended:
                    self.write_table()
                watch()

    def _predict(self) -> None:
        """Write the prediction of the hold-out run, unless there is one, or none can be made."""
        if not self.design.hold_out or (self.folder / PREDICTION).exists():
            return
        kind = self.design.kinds[0]
        rates, law = self.rate_rule(kind), self.law(kind)
        if rates is None or law is None or law.problem:
            return
        size = law.at(self.design.hold_out).size.value
        cell = self.design.hold_out_of(kind, size)
        forecast = law.at(cell.flops)
        data = {
            "kind": kind, "flops": cell.flops, "M": cell.size, "tokens": cell.tokens, "size_sought": size,
            "learning_rate": rates.at(cell.size), "bits_per_byte": forecast.loss,
            "interval": [forecast.interval.low, forecast.interval.high],
            "fitted": [forecast.fitted.low, forecast.fitted.high], "filters": forecast.filters,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S"), "law": laws.law_json(law),
        }  # fmt: skip
        write_json(self.folder / PREDICTION, data)

    # ---- results

    def write_table(self) -> None:
        """Write table.csv."""
        write_table(self.folder / TABLE, self.rows(), self.design.seed)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON, with None for NaN and infinities."""
    with atomic_write(path) as file:
        json.dump(finite(data), file, indent=2)
        file.write("\n")


def check_request(folder: Path, stored: dict[str, Any], request: dict[str, Any]) -> None:
    """Raise UsageError if a folder's sweep was started with other options than those in `request`."""
    plain = json.loads(json.dumps(request))
    if changed := differences({name: stored.get(name) for name in plain}, plain):
        raise UsageError(
            f"{folder} holds another sweep: {'; '.join(changed)}. Choose another --out, or widen it with --add-budget"
            " and --add-size"
        )


def _planned_memory(folder: Path) -> float:
    prediction = RunRecord.read(folder).prediction
    return prediction.memory if prediction else 0.0
