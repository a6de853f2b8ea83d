"""Preparing text: what is there is kept, what was done is not done again, nothing half-written is taken for whole."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from nextword.base import RunError, UsageError
from nextword.data import open_dataset, prepare, shards, train_tokenizer
from nextword.data.splitting import hash_of


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


def shard_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".bin", ".npy")}


def lines_of(path: Path, count: int, seed: int = 0) -> Path:
    """`count` documents as JSON lines."""
    texts = paragraphs(count, seed).strip().split("\n\n")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BATCH", 2000)
    monkeypatch.setattr(shards, "_SHARD", 10_000)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_every_document_is_there_once_with_an_end_on_the_side_of_its_hash(tmp_path: Path, kind: str) -> None:
    source = lines_of(tmp_path / "a.jsonl", 200)
    data = prepare([source], tmp_path / "data", tokenizer_kind=kind, vocabulary=300)
    tokenizer, given = data.tokenizer(), [json.loads(line)["text"] for line in source.read_text().splitlines()]
    found: dict[str, list[str]] = {}
    for side, stream in (("train", data.train), ("heldout", data.heldout)):
        edges = [*stream.document_starts.tolist(), stream.tokens]
        documents = [stream.read(a, b - a).tolist() for a, b in pairwise(edges)]
        assert all(document[-1] == 0 and 0 not in document[:-1] for document in documents)
        found[side] = [tokenizer.decode(document[:-1]) for document in documents]
        assert stream.documents == len(documents)
        assert stream.bytes == sum(len(text.encode()) for text in found[side])
    assert sorted(found["train"] + found["heldout"]) == sorted(given)
    assert max(map(hash_of, found["heldout"])) < min(map(hash_of, found["train"]))
    assert data.heldout.bytes / (data.train.bytes + data.heldout.bytes) == pytest.approx(0.05, abs=0.01)


def test_equal_texts_are_counted_and_never_stand_on_both_sides(tmp_path: Path) -> None:
    texts = paragraphs(60).strip().split("\n\n")
    rows = texts * 3 + texts[:7]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", tokenizer_kind="bytes", holdout=0.3)
    sides = []
    for stream in (data.train, data.heldout):
        edges = [*stream.document_starts.tolist(), stream.tokens]
        sides.append({stream.read(a, b - a).tobytes() for a, b in pairwise(edges)})
    assert data.manifest.duplicates == 60 * 2 + 7
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 60


def test_one_long_text_is_cut_so_that_some_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(text := paragraphs(400))
    data = prepare([tmp_path / "book.txt"], tmp_path / "data", tokenizer_kind="bytes")
    assert data.manifest.settings.piece > 0
    assert data.train.bytes + data.heldout.bytes == len(text)
    assert 0.03 < data.heldout.bytes / len(text) < 0.07


def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for good while the fourth shard is written: then nothing of the first three is done again."""
    source = lines_of(tmp_path / "a.jsonl", 300)
    whole = prepare([source], tmp_path / "whole", vocabulary=300)
    program = f"""
import os
from nextword.data import shards
shards._BATCH, shards._SHARD = 2000, 10_000
write, written = shards._Shard.write, []
def write_some(self, *arguments):
    if len(written) == 3:
        (shards.Path({str(tmp_path / "cut")!r}) / "train-00003.bin").write_bytes(b"half of")
        os.kill(os.getpid(), 9)
    written.append(write(self, *arguments))
shards._Shard.write = write_some
shards.prepare([{str(source)!r}], {str(tmp_path / "cut")!r}, vocabulary=300)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match="not prepared to its end"):
        open_dataset(tmp_path / "cut")
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cut").glob("*-0000[012].bin")}
    assert len(before) == 6
    monkeypatch.setattr(shards, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was there already"))
    again = prepare([source], tmp_path / "cut", vocabulary=300)
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in before} == before
    assert shard_files(tmp_path / "cut") == shard_files(tmp_path / "whole")
    assert again.train.fingerprint == whole.train.fingerprint
    assert again.manifest == whole.manifest


def test_what_is_whole_is_not_written_again_and_what_changed_is(tmp_path: Path) -> None:
    source = lines_of(tmp_path / "a.jsonl", 100)
    first = prepare([source], tmp_path / "data", vocabulary=300)
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()}
    assert prepare([source], tmp_path / "data", vocabulary=300).fingerprint == first.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()} == times
    lines_of(source, 100, seed=1)
    assert prepare([source], tmp_path / "data", vocabulary=300).fingerprint != first.fingerprint


def test_a_tokenizer_trained_before_is_not_confused_with_one_given_in_between(tmp_path: Path) -> None:
    source = lines_of(tmp_path / "a.jsonl", 100)
    first = prepare([source], tmp_path / "data", vocabulary=300)
    prepare([source], tmp_path / "data", train_tokenizer([], "bytes", 0))
    assert prepare([source], tmp_path / "data", vocabulary=300).fingerprint == first.fingerprint


@pytest.mark.parametrize("files", ["*.bin", "*.lengths.npy"])
def test_a_file_that_is_missing_or_cut_off_or_changed_is_found(tmp_path: Path, files: str) -> None:
    prepare([lines_of(tmp_path / "a.jsonl", 100)], tmp_path / "data", tokenizer_kind="bytes")
    for path in sorted((tmp_path / "data").glob(files)):
        data = path.read_bytes()
        changed = data[:-1] + bytes([data[-1] ^ 1])
        for damaged in (changed, data[:-2], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(UsageError, match="prepare the data anew"):
                open_dataset(tmp_path / "data", verify=True)
        path.write_bytes(data)
    open_dataset(tmp_path / "data", verify=True)


def test_a_full_disk_is_said_in_a_line_and_nothing_half_written_counts(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = lines_of(tmp_path / "a.jsonl", 300)
    write, calls = shards._Shard.write, []

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_until_full(self: object, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(os, "fsync", full)
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(shards._Shard, "write", write_until_full)
        with pytest.raises(RunError, match="no space left on device") as caught:
            prepare([source], tmp_path / "data", tokenizer_kind="bytes")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)
    monkeypatch.undo()
    names = {file.name for file in (tmp_path / "data").iterdir()}
    assert "train-00001.bin" in names
    assert not {name for name in names if name.startswith(".") or "00002" in name}
    with pytest.raises(UsageError, match="not prepared to its end"):
        open_dataset(tmp_path / "data")


def test_text_that_is_too_little_leaves_nothing_that_passes_for_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UsageError, match="too little to hold some out"):
        prepare([tmp_path / "a.txt"], tmp_path / "data")
    with pytest.raises(UsageError):
        open_dataset(tmp_path / "data")


def test_broken_rows_are_counted_once_however_often_the_text_is_read(tmp_path: Path, small_shards: None) -> None:
    source = lines_of(tmp_path / "a.jsonl", 100)
    rows = source.read_text().splitlines()
    source.write_text("\n".join([*rows[:5], "{broken", *rows[5:], '{"text": "\\ud800"}']) + "\n")
    with pytest.raises(UsageError, match="line 6"):
        prepare([source], tmp_path / "data", vocabulary=300)
    data = prepare([source], tmp_path / "data", vocabulary=300, skip_bad=True)
    assert data.manifest.broken == 2
    assert data.manifest.documents == data.train.documents + data.heldout.documents == 100


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
def test_a_corpus_larger_than_the_memory_used_is_prepared(tmp_path: Path) -> None:
    """Parts are made smaller in proportion. Beside it the memory that holding all documents takes."""
    text = paragraphs(3000)
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(10):
            for paragraph in text.strip().split("\n\n"):
                file.write(json.dumps({"text": f"{number} {paragraph}"}) + "\n")
    size = (tmp_path / "a.jsonl").stat().st_size
    lines_of(tmp_path / "warm.jsonl", 2000)
    program = f"""
from nextword.data import shards
shards._BATCH, shards._SHARD, shards._SMALL = 1 << 15, 1 << 19, 1 << 19
def peak():  # not getrusage's, which begins with that of the process that started this one
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
characters = shards.train_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789"], "characters", 0)
shards.prepare([{str(tmp_path / "warm.jsonl")!r}], {str(tmp_path / "warm")!r}, characters)
before = peak()
data = shards.prepare([{str(tmp_path / "a.jsonl")!r}], {str(tmp_path / "data")!r}, characters)
after = peak()
held = list(shards.read_documents(shards.Path({str(tmp_path / "a.jsonl")!r})))
print(data.train.documents + data.heldout.documents, after - before, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    documents, prepared, held = map(int, done.stdout.split())
    assert documents == 30_000
    assert prepared < size / 2 < held
