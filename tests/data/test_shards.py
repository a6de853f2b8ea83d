"""Preparing text: what is there is kept, what was done is not done again, nothing half-written is taken for whole."""

from __future__ import annotations

import random
from pathlib import Path

from nextword.data import prepare


def paragraphs(count: int, seed: int = 0, words: int = 60) -> str:
    """Text of made-up words, every paragraph different."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("abcdefghijklmnoprstuvwz", k=draw.randint(2, 9))) for _ in range(400)]
    return "\n\n".join(" ".join(draw.choices(known, k=words)) for _ in range(count)) + "\n"


def test_a_folder_that_holds_other_things_keeps_them_all(tmp_path: Path) -> None:
    """Also the text itself, and files that end as ours do."""
    text, others = paragraphs(40), {"thesis.odt": b"years", "pytorch_model.bin": b"weights", "train-notes.bin": b"x"}
    (tmp_path / "corpus.txt").write_text(text)
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    for vocabulary in (300, 310):
        prepare([tmp_path / "corpus.txt"], tmp_path, vocabulary=vocabulary)
        assert (tmp_path / "corpus.txt").read_text() == text
        assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_preparing_otherwise_leaves_no_shard_of_before(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(paragraphs(40))
    prepare([tmp_path / "corpus.txt"], tmp_path / "data", tokenizer_kind="bytes")
    (tmp_path / "data" / "train-00007.bin").write_bytes(b"left by a longer text")
    prepare([tmp_path / "corpus.txt"], tmp_path / "data", vocabulary=300)
    assert not (tmp_path / "data" / "train-00007.bin").exists()
