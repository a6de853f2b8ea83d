"""Workers whose runs take simulated time and report the losses of a formula."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nextword.plan import RunConfig
from nextword.scale.design import Cell, work
from nextword.scale.speed import Speed
from nextword.scale.sweep import Sweep
from nextword.train.metrics import append_line
from nextword.train.run_dir import Measured, write_report
from sweep_folders import loss_of


@dataclass
class Simulated:
    """Each run takes the seconds that `speed` says, less those of the trunk it starts from."""

    sweep: Sweep
    speed: Speed
    count: int = 2
    planned: int = 2
    most_threads: int = 2
    now: float = 0.0
    ends: dict[Path, float] = field(default_factory=dict)  # when each run does
    cells: dict[Path, Cell] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    @property
    def running(self) -> set[Path]:
        return set(self.ends)

    def has_room(self, memory: float) -> bool:
        return len(self.ends) < self.count

    def start(self, folder: Path, memory: float, threads: int) -> None:
        cell = next(cell for cell in self._cells() if cell.name == folder.name)
        trunk = max((each.stable_steps for each in self._cells()
                     if each.role == cell.role == "grid" and each.size == cell.size and each.budget < cell.budget
                     and (self.sweep.place.runs / each.name / "report.json").exists()), default=0)  # fmt: skip
        if trunk:
            append_line(folder / "metrics.jsonl", {"step": trunk - 1, "loss": 2.0})
        self.cells[folder] = cell
        self.ends[folder] = self.now + self.speed.seconds(cell, cell.steps - trunk)

    def step_seconds(self, config: RunConfig) -> float:
        size = work(config.spec, config.train.context)
        tokens = config.train.batch_size * config.train.context
        return self.speed.training(Cell("hold-out", config.spec, size, 1.0, 1, tokens))

    def wait(self, seconds: float) -> dict[Path, int]:
        if not self.ends:
            return {}
        folder = min(self.ends, key=self.ends.__getitem__)
        self.now, cell = self.ends.pop(folder), self.cells[folder]
        factor = 1 + 0.01 * abs(cell.rate / 4e-3 - 1) if cell.role == "rate" else 1.0
        bits = factor * loss_of(cell.kind, cell.size, cell.tokens)
        write_report(folder, None, Measured(
            memory=1e8, seconds=self.speed.training(cell), tokens=cell.tokens, tokens_per_second=1.0, share_of_peak=0.5,
            data_share=0.0, train_loss=bits, nats_per_token=bits, bits_per_byte=bits, threads=1, steps=cell.steps,
        ))  # fmt: skip
        return {folder: 0}

    def close(self) -> None:
        self.ends.clear()

    def _cells(self) -> list[Cell]:
        sweep = self.sweep
        kinds = [cell for kind in sweep.design.kinds for cell in (*sweep.rate_cells(kind), *sweep.grid(kind))]
        return [*kinds, *sweep.repeats(), *([sweep.hold_out] if sweep.hold_out else [])]
