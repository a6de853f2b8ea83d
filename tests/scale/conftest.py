"""A sweep small enough for a test."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nextword.data import Dataset, prepare
from nextword.plan import device
from nextword.plan.run_config import DataConfig
from nextword.scale.cells import Place
from nextword.scale.design import SweepDesign
from nextword.scale.sweep import Sweep
from nextword.train.planning import Machine

WORDS = "the a king queen went to of and in castle river stone old young night day saw spoke gave took".split()  # noqa: SIM905
SETTINGS = DataConfig(vocabulary=300)


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
