"""The difficulty of a text against a table of counts in plain Python, and what it must be on texts one knows."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nextword.data import prepare
from nextword.data.difficulty import Difficulty, bigram_bits
from nextword.plan.run_config import DataConfig

WORDS = ["the ", "sea ", "was ", "calm ", "and ", "a ", "ship ", "sailed. "]


def by_tables(train: list[int], held_out: list[int], vocabulary: int) -> float:
    """Witten and Bell's interpolation as written in the paper, one token after the other."""
    single, after = Counter(train), defaultdict[int, Counter[int]](Counter)
    for first, second in pairwise(train):
        after[first][second] += 1
    bits = 0.0
    for first, second in pairwise(held_out):
        p = (single[second] + len(single) / vocabulary) / (len(train) + len(single))
        if total := after[first].total():
            p = (after[first][second] + len(after[first]) * p) / (total + len(after[first]))
        bits -= math.log2(p)
    return bits / (len(held_out) - 1)


def test_pairs_of_tokens_are_as_hard_as_tables_of_counts_say() -> None:
    draw = random.Random(0)
    train = [draw.choice([draw.randrange(20), 3, number % 7]) for number in range(500)]
    held_out = [draw.randrange(24) for _ in range(200)]
    assert bigram_bits(np.array(train), np.array(held_out), 24) == pytest.approx(by_tables(train, held_out, 24))


def measured(text: bytes, folder: Path, **settings: object) -> Difficulty:
    folder.mkdir()
    (folder / "a.txt").write_bytes(text)
    return prepare([folder / "a.txt"], folder / "data", DataConfig(**settings)).difficulty  # type: ignore[arg-type]


def test_words_drawn_at_random_are_as_hard_as_their_entropy_whatever_the_tokenizer(tmp_path: Path) -> None:
    """Three bits a word; a compressor cannot do better, and loses a little."""
    draw = random.Random(3)
    text = "".join(draw.choice(WORDS) for _ in range(60_000)).encode()
    entropy = 3 / (sum(map(len, WORDS)) / len(WORDS))
    for number, settings in enumerate(({"tokenizer": "bytes"}, {"vocabulary": 300})):
        found = measured(text, tmp_path / str(number), **settings)
        assert found.bigrams == pytest.approx(entropy, rel=0.03)
        assert entropy < found.repeats < 1.3 * entropy


def test_a_passage_that_is_repeated_is_easy_for_the_compressor_alone(tmp_path: Path) -> None:
    draw = random.Random(4)
    passage = bytes(draw.choice(b"abcdefghijklmnopqrstuvwxyz ") for _ in range(2000))
    found = measured(passage * 100, tmp_path / "repeated", tokenizer="bytes")
    assert found.repeats < 0.2 < 1.5 < found.bigrams


def test_a_held_out_text_too_short_to_say_is_as_hard_as_a_guess(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number}")
    assert prepare([tmp_path], tmp_path / "data", DataConfig(tokenizer="bytes")).difficulty == Difficulty(8, 8)
