"""Workers that make a sweep's runs in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nextword.scale.worker import train_cell
from nextword.train.callbacks import Callbacks


@dataclass
class Here:
    """Makes each run at once, in this process. `started` has their folders in order."""

    count: int = 1
    planned: int = 1
    most_threads: int = 1
    running: set[Path] = field(default_factory=set)
    started: list[Path] = field(default_factory=list)
    before: Callable[[Path], None] = lambda folder: None
    broken: Callable[[Path], int] = lambda folder: 0  # exit codes

    def has_room(self, memory: float) -> bool:
        return not self.running

    def start(self, folder: Path, memory: float, threads: int) -> None:
        self.before(folder)
        self.started.append(folder)
        self.running.add(folder)

    def wait(self, seconds: float) -> dict[Path, int]:
        ended = {folder: self.broken(folder) or (0 if train_cell(folder, Callbacks()) else 1)
                 for folder in self.running}  # fmt: skip
        self.running.clear()
        return ended

    def close(self) -> None:
        self.running.clear()
