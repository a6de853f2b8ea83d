"""A sweep's folder, and the order in which its runs are made.

scale.json        the design, the data and its fingerprint, versions
runs/             a run folder for each cell
prediction.json   what was predicted of the hold-out run, written before it started
table.csv, law.json, best.toml, report.html   derived from the runs whenever asked
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..base import UsageError, atomic_write, read_json, units
from ..base.fields import finite, from_plain
from ..data import open_dataset
from ..plan import RunConfig
from ..plan.run_config import DataConfig
from ..spec import ModelKind
from ..train.checkpoint import folder_name
from ..train.planning import Machine
from ..train.run_dir import RunRecord, differences, locked_run
from . import law as laws
from .cells import Place, config_of, make_folder
from .deadline import Deadline, hold_out_in_time, shortened
from .design import HOLD_OUT, Cell, SweepDesign
from .law import KindLaw
from .rates import RateRule, best_rate, more, rule, scan
from .speed import Ended, Speed
from .table import Row, row_of, table_csv

FORMAT = "nextword-sweep/1"
STATE, PREDICTION, TABLE = "scale.json", "prediction.json", "table.csv"
_QUIET_SECONDS = 1.0  # between looks at the running processes


class Workers(Protocol):
    """Where runs are made: each in a process of its own, which resumes what it finds in the run's folder."""

    planned: int  # runs at once that a plan of the time counts on: those that share a GPU may take turns
    most_threads: int  # of one run

    @property
    def running(self) -> set[Path]:
        """The folders of the runs under way."""

    def has_room(self, memory: float) -> bool:
        """Whether a run that takes `memory` bytes may start now."""

    def start(self, folder: Path, memory: float, threads: int) -> None:
        """Begin to train the run in `folder`."""

    def step_seconds(self, config: RunConfig) -> float:
        """Seconds of a step, timed where the run will be made; NaN if that cannot be done here."""

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
    deadline: Deadline | None = None  # None: it takes as long as it takes
    _rows: dict[str, Row] = field(default_factory=dict)  # of settled cells
    _started: dict[Path, tuple[float, float]] = field(default_factory=dict)  # share done before, and when
    _ended: list[Ended] = field(default_factory=list)  # in this process

    # ---- the folder

    def write(self) -> None:
        """Write scale.json."""
        data = {
            "format": FORMAT, "version": __version__, "request": self.request, "design": self.design.to_dict(),
            "data": {"folder": str(self.place.data.folder.resolve()), "fingerprint": self.place.data.fingerprint,
                     "sources": list(self.place.sources), "settings": asdict(self.place.settings)},
            "speed": asdict(self.speed) if self.speed else None,
            "seconds_spent": self.deadline.elapsed if self.deadline else None,
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
            spent = stored.get("seconds_spent")
        except (KeyError, TypeError) as error:
            raise UsageError(f"{path}: {error} is missing. Restore the original file") from None
        data = open_dataset(where)
        if data.fingerprint != fingerprint:
            raise UsageError(f"{where} differs from the text that {folder} was started with")
        place = Place(folder / "runs", data, settings, sources)
        deadline = None if spent is None else Deadline(60 * request["minutes"], spent)
        return cls(folder, design, place, request, speed, deadline)

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
        """The states of all cells that are known so far: rates, grid, repeats, hold-out."""
        cells = [cell for kind in self.design.kinds for cell in (*self.rate_cells(kind), *self.grid(kind))]
        hold_out = self.hold_out
        return [self.row(cell) for cell in (*cells, *self.repeats(), *([hold_out] if hold_out else []))]

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

    def repeats(self) -> list[Cell]:
        """The cells that are run again, with their learning rates once these are known, else 0."""
        chosen = self.rate_rule(self.design.kinds[0])
        return [replace(cell, rate=chosen.at(cell.size) * (0.5 if cell.role == "half-rate" else 1.0) if chosen else 0.0)
                for cell in self.design.repeats()]  # fmt: skip

    def law(self, kind: ModelKind) -> KindLaw | None:
        """The law of the cells that are finished by now; None without any."""
        return laws.fit_kind(kind, [self.row(cell) for cell in (*self.grid(kind), *self.repeats())])

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
        """The cells that may start now, most wanted first: rates, grid, repeats, then the hold-out run alone."""
        found: list[Cell] = []
        for kind in self.design.kinds:
            if self.rate_rule(kind) is None:
                found += self.rate_cells(kind)
            else:
                found += self._with_trunks(self.grid(kind), failed)
        found += self.repeats() if self.rate_rule(self.design.kinds[0]) else []
        left = [cell for cell in found if self._is_open(cell, running | failed)]
        cell = self.hold_out
        return [cell] if cell and not left and not running and self._is_open(cell, failed) else left

    def _is_open(self, cell: Cell, besides: set[Path]) -> bool:
        return not self.row(cell).settled and self._folder(cell) not in besides

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

    def run(
        self, workers: Workers, machine: Machine, watch: Callable[[], None] = lambda: None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        """Run what is left. Whatever happens, the runs under way are stopped with a checkpoint each.

        A run that fails is not tried again in this call, one that is killed once. `watch` is called a few times a
        second; `log` is told what changes in the design, so that the sweep ends on time.
        """
        failed: set[Path] = set()
        killed: set[Path] = set()
        with self.locked(), self._time_kept(), closing(workers):
            while True:
                waiting = self.todo(workers.running, failed)
                if not waiting and not workers.running:
                    if self.predict(workers, log):
                        continue
                    return
                for cell in waiting:
                    if not self._start(cell, workers, machine):
                        break
                ended = workers.wait(_QUIET_SECONDS)
                for folder, code in ended.items():
                    if code < 0:
                        log(f"{folder.name} was killed by signal {-code}")
                    (killed if code < 0 and folder not in killed else failed).update({folder} if code else ())
                if ended:
                    self._note(ended)
                    self._keep_time()
                    self.write_table()
                watch()

    @contextmanager
    def _time_kept(self) -> Iterator[None]:
        """Store what was spent of the time, whatever happens."""
        try:
            yield
        finally:
            if self.deadline is not None:
                with suppress(OSError):
                    self.write()

    def _start(self, cell: Cell, workers: Workers, machine: Machine) -> bool:
        """Start a cell's run, if there is room for it."""
        if not workers.has_room(0.0):
            return False
        trunks = [each for each in self.grid(cell.kind) if each.size == cell.size]
        folder = make_folder(cell, self.design, self.place, machine, trunks, self._threads(cell, workers))
        memory, threads = _needs(folder)
        if not workers.has_room(memory):
            return False
        workers.start(folder, memory, threads)
        self._started[folder] = row_of(cell, self.place.runs).share, self._now()
        return True

    def _threads(self, cell: Cell, workers: Workers) -> int:
        """Threads of a run: the hold-out run is alone."""
        return workers.most_threads if cell.role == "hold-out" and self.design.device == "cpu" else 1

    def _now(self) -> float:
        return self.deadline.clock() if self.deadline else time.monotonic()

    @property
    def learned(self) -> Speed | None:
        """The speed, by what runs took in this call where some have ended."""
        return self.speed.learned(self._ended) if self.speed else None

    def _note(self, folders: Iterable[Path]) -> None:
        """Note how long the runs took that ended just now."""
        rows = {self._folder(row.cell): row for row in self.rows()}
        for folder in folders:
            row, (share, start) = rows[folder], self._started.pop(folder)
            self._ended.append(Ended(row, round((1 - share) * row.cell.steps), self._now() - start))

    def _keep_time(self) -> None:
        """Once the learning rates are known, leave out the cells that no longer fit the time; store the time spent.

        A cell that was left out comes back if it fits again, until the hold-out run is predicted.
        """
        if self.deadline is None:
            return
        speed = self.learned
        known = all(self.rate_rule(kind) is not None for kind in self.design.kinds)
        if speed is not None and known and self.prediction is None:
            whole = replace(self, design=replace(self.design, left_out=()))
            self.design = shortened(whole, speed, self.deadline.left)
        self.write()

    def predict(self, workers: Workers | None = None, log: Callable[[str], None] = lambda text: None) -> bool:
        """Write the prediction of the hold-out run; False if there is one, or none can be made."""
        if not self.design.hold_out or (self.folder / PREDICTION).exists():
            return False
        kind = self.design.kinds[0]
        rates, law = self.rate_rule(kind), self.law(kind)
        if rates is None or law is None or law.problem:
            return False
        if workers is not None:
            self._size_hold_out(law, rates, workers, log)
        size = law.best_size(self.design.hold_out)
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
        return True

    def _size_hold_out(self, law: KindLaw, rates: RateRule, workers: Workers, log: Callable[[str], None]) -> None:
        """Let the hold-out run take what time is left, by timing its own step."""
        speed, smallest = self.learned, self.design.with_hold_out(HOLD_OUT)
        if self.deadline is None or speed is None:
            return
        cell = smallest.hold_out_of(law.kind, law.best_size(smallest.hold_out))
        cell = replace(cell, rate=rates.at(cell.size))
        config = config_of(cell, smallest, self.place.settings, self._threads(cell, workers))
        speed = speed.hold_out_as(cell, workers.step_seconds(config))
        for name in self.design.left_out:
            log(f"left out, since time is short: {name}")
        left = self.deadline.left
        self.design = hold_out_in_time(smallest, law, speed, left)
        self.write()
        times = self.design.hold_out / self.design.budgets[-1]
        seconds = speed.training(cell) * times / HOLD_OUT + speed.around(cell)
        log(f"hold-out: {times:.2g} times the top budget, about {units.format_seconds(seconds)} of the"
            f" {units.format_seconds(max(0.0, left))} left")  # fmt: skip

    # ---- results

    def write_table(self) -> None:
        """Write table.csv."""
        with atomic_write(self.folder / TABLE) as file:
            file.write(table_csv(self.rows(), self.design.seed))


def json_text(data: dict[str, Any]) -> str:
    """Plain data as JSON, with null for NaN and infinities."""
    return json.dumps(finite(data), indent=2) + "\n"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON."""
    with atomic_write(path) as file:
        file.write(json_text(data))


def check_request(folder: Path, stored: dict[str, Any], request: dict[str, Any]) -> None:
    """Raise UsageError if a folder's sweep was started with other options than those in `request`."""
    plain = json.loads(json.dumps(request))
    if changed := differences({name: stored.get(name) for name in plain}, plain):
        raise UsageError(
            f"{folder} holds another sweep: {'; '.join(changed)}. Choose another --out, or widen it with --add-budget"
            " and --add-size"
        )


def _needs(folder: Path) -> tuple[float, int]:
    """The planned memory and the threads of a run."""
    record = RunRecord.read(folder)
    return record.prediction.memory if record.prediction else 0.0, record.config.run.threads
