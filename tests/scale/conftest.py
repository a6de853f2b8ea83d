"""A sweep small enough for a test, and workers that make its runs in the tests' own process."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nextword.data import Dataset, prepare
from nextword.plan import device
from nextword.plan.run_config import DataConfig
from nextword.scale.cells import Place
from nextword.scale.design import SweepDesign
from nextword.scale.sweep import Sweep
from nextword.scale.worker import train_cell
from nextword.train.callbacks import Callbacks
from nextword.train.planning import Machine

WORDS = "the a king queen went to of and in castle river stone old young night day saw spoke gave took".split()  # noqa: SIM905
SETTINGS = DataConfig(vocabulary=300)


@dataclass
class Here:
    """Makes each run at once, in this process. `started` has their folders in order."""

    count: int = 1
    running: set[Path] = field(default_factory=set)
    started: list[Path] = field(default_factory=list)
    before: Callable[[Path], None] = lambda folder: None
    broken: Callable[[Path], bool] = lambda folder: False

    def has_room(self, memory: float) -> bool:
        return not self.running

    def start(self, folder: Path, memory: float, threads: int) -> None:
        self.before(folder)
        self.started.append(folder)
        self.running.add(folder)

    def wait(self, seconds: float) -> dict[Path, int]:
        ended = {folder: 0 if not self.broken(folder) and train_cell(folder, Callbacks()) else 1
                 for folder in self.running}  # fmt: skip
        self.running.clear()
        return ended

    def close(self) -> None:
        self.running.clear()


@pytest.fixture(scope="session")
def scale_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sentences of a first-order Markov chain of words, 40,000 tokens."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("scale")
    follows = {word: draw.choices(WORDS, k=4) for word in WORDS}
    for number in range(30):
        word, text = draw.choice(WORDS), []
        for _ in range(1000):
            word = draw.choice(follows[word])
            text.append(word)
        (folder / f"{number}.txt").write_text(" ".join(text), encoding="utf-8")
    return prepare([folder], tmp_path_factory.mktemp("tokens") / "tokens", SETTINGS)


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(device("own=8GB,10GB/s,100GFLOP/s"))


@pytest.fixture(scope="session")
def new_sweep(scale_data: Dataset) -> Callable[[Path], Sweep]:
    """A sweep of two sizes and two budgets, in a new folder."""

    def make(folder: Path) -> Sweep:
        design = SweepDesign(
            kinds=("transformer",), sizes=(8.5e3, 12.5e3), budgets=(4e9, 8e9), hold_out=1.6e10,
            vocabulary=scale_data.vocabulary, context=16, batch_size=64, warmup_steps=5,
            unique_tokens=scale_data.train.tokens, bytes_per_token=scale_data.bytes_per_token,
            scanned=(8.5e3, 12.5e3), scan_budget=8e8, least_steps=10,
        )  # fmt: skip
        folder.mkdir()
        sweep = Sweep(folder, design, Place(folder / "runs", scale_data, SETTINGS, ("text",)), {"minutes": 1.0})
        sweep.write()
        return sweep

    return make
