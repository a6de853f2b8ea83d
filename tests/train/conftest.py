"""Text to train on, made once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nextword.data import Dataset, prepare
from nextword.plan.run_config import DataConfig

WORDS = "the a king queen went to of and in castle river stone old young night day saw spoke".split()  # noqa: SIM905


def story(seed: int, words: int) -> str:
    """Sentences of a simple grammar's noise, in paragraphs."""
    draw = random.Random(seed)
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "." for _ in range(words // 8)]
    return "\n\n".join(" ".join(sentences[n : n + 5]) for n in range(0, len(sentences), 5)) + "\n"


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty short documents."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(story(number, 200), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The documents as tokens of a small vocabulary."""
    folder = tmp_path_factory.mktemp("data") / "tokens"
    return prepare([text_folder], folder, DataConfig(vocabulary=300, val_fraction=0.15))
