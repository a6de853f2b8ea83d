"""Preparing text: what is there is kept, what was done is not done again, nothing half-written is taken for whole."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextword.base import RunError, UsageError
from nextword.data import (
    TokenStream,
    find_sources,
    measure_bytes_per_token,
    open_dataset,
    prepare,
    prepare_in,
    reader,
    reading,
    shards,
    survey,
    tokenizing,
    train_tokenizer,
)
from nextword.data.splitting import choose_val, hash_of
from nextword.plan.run_config import DataConfig


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
        prepare([tmp_path / "corpus.txt"], tmp_path, DataConfig(vocabulary=vocabulary))
        assert (tmp_path / "corpus.txt").read_text() == text
        assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_preparing_otherwise_leaves_no_shard_of_before(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(paragraphs(40))
    prepare([tmp_path / "corpus.txt"], tmp_path / "data", DataConfig(tokenizer="bytes"))
    (tmp_path / "data" / "train-00007.bin").write_bytes(b"left by a longer text")
    prepare([tmp_path / "corpus.txt"], tmp_path / "data", DataConfig(vocabulary=300))
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
    monkeypatch.setattr(tokenizing, "BATCH", 2000)
    monkeypatch.setattr(reader, "SHARD", 10_000)


def segments_of(stream: TokenStream) -> list[list[int]]:
    """The tokens of each stretch of uninterrupted text."""
    edges = zip(stream.segments.starts.tolist(), stream.segments.lengths.tolist(), strict=True)
    return [stream.read(start, length).tolist() for start, length in edges]


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_every_document_is_there_once_behind_its_mark_on_the_side_of_its_hash(tmp_path: Path, kind: str) -> None:
    source = lines_of(tmp_path / "a.jsonl", 200)
    data = prepare([source], tmp_path / "data", DataConfig(tokenizer=kind, vocabulary=300))
    tokenizer, given = data.tokenizer(), [json.loads(line)["text"] for line in source.read_text().splitlines()]
    found: dict[str, list[str]] = {}
    for side, stream in (("train", data.train), ("val", data.val)):
        documents = segments_of(stream)
        assert all(document[0] == 0 and 0 not in document[1:] for document in documents)
        assert stream.segments.ends.all()
        found[side] = [tokenizer.decode(document[1:]) for document in documents]
        assert stream.documents == len(documents)
        assert stream.bytes == sum(len(text.encode()) for text in found[side])
    assert sorted(found["train"] + found["val"]) == sorted(given)
    hashes = {hash_of(text): len(text) for text in given}
    chosen = choose_val(np.array(list(hashes), np.uint64), np.array(list(hashes.values())), 0.05)
    assert {hash_of(text) for text in found["val"]} == chosen
    assert data.val_share == pytest.approx(0.05, abs=0.01)


def test_equal_texts_are_counted_and_never_stand_on_both_sides(tmp_path: Path) -> None:
    texts = paragraphs(60).strip().split("\n\n")
    rows = texts * 3 + texts[:7]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", DataConfig(tokenizer="bytes", val_fraction=0.3))
    sides = []
    for stream in (data.train, data.val):
        sides.append({tuple(segment) for segment in segments_of(stream)})
    assert data.manifest.duplicates == 60 * 2 + 7
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 60


def test_only_documents_end_and_not_the_pieces_that_are_held_out_of_them(tmp_path: Path) -> None:
    """Three books: each begins with one mark, and a gap where a piece is held out has none."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(paragraphs(200, seed=ord(name)))
    data = prepare(sorted(tmp_path.glob("*.txt")), tmp_path / "data", DataConfig(tokenizer="bytes"))
    assert data.manifest.settings.piece > 0
    assert data.train.bytes + data.val.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.txt"))
    assert data.val_share == pytest.approx(0.05, abs=0.01)
    marks = [segment.count(0) for stream in (data.train, data.val) for segment in segments_of(stream)]
    assert sum(marks) == 3
    assert sum(int(stream.segments.ends.sum()) for stream in (data.train, data.val)) == 3
    tokenizer = data.tokenizer()
    for file, document in zip("abc", range(3), strict=True):
        text = (tmp_path / f"{file}.txt").read_text()
        for stream in (data.train, data.val):
            for segment, number in zip(segments_of(stream), stream.segments.documents, strict=True):
                assert number != document or tokenizer.decode([id for id in segment if id]) in text
    assert data.train.documents == 3
    assert len(data.val.segments.starts) > 3


def test_a_text_that_is_read_in_parts_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 1000)
    monkeypatch.setattr(reader, "FEW", 1)  # it is not cut into smaller ones
    (tmp_path / "book.txt").write_text(text := paragraphs(100))
    data = prepare([tmp_path / "book.txt"], tmp_path / "data", DataConfig(tokenizer="bytes", val_fraction=0.2))
    assert data.manifest.settings.piece == 0
    sides = [segments_of(stream) for stream in (data.train, data.val)]
    assert sum(segment.count(0) for side in sides for segment in side) == 1
    assert len(sides[0]) > 3
    assert sum(len(segment) for side in sides for segment in side) == len(text) + 1


def test_segments_do_not_end_where_shards_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book.txt").write_text(paragraphs(400))
    whole = prepare([tmp_path / "book.txt"], tmp_path / "whole", DataConfig(tokenizer="bytes"))
    monkeypatch.setattr(tokenizing, "BATCH", 2000)
    monkeypatch.setattr(reader, "SHARD", 10_000)
    cut = prepare([tmp_path / "book.txt"], tmp_path / "cut", DataConfig(tokenizer="bytes"))
    assert len(cut.manifest.train) > 3
    assert segments_of(cut.train) == segments_of(whole.train)


def test_an_interrupted_preparation_goes_on_where_it_was(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for good while the fourth shard is written: then nothing of the first three is done again."""
    source = lines_of(tmp_path / "a.jsonl", 300)
    whole = prepare([source], tmp_path / "whole", DataConfig(vocabulary=300))
    program = f"""
import os
from nextword.data import reader, reading, shards, tokenizing
tokenizing.BATCH, reader.SHARD = 2000, 10_000
write, written = tokenizing._Shard.write, []
def write_some(self, *arguments):
    if len(written) == 3:
        (shards.Path({str(tmp_path / "cut")!r}) / "train-00003.bin").write_bytes(b"half of")
        os.kill(os.getpid(), 9)
    written.append(write(self, *arguments))
tokenizing._Shard.write = write_some
shards.prepare([{str(source)!r}], {str(tmp_path / "cut")!r}, shards.DataConfig(vocabulary=300))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match="incomplete"):
        open_dataset(tmp_path / "cut")
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cut").glob("*-0000[012].bin")}
    assert len(before) == 6
    monkeypatch.setattr(shards, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was there already"))
    again = prepare([source], tmp_path / "cut", DataConfig(vocabulary=300))
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in before} == before
    assert shard_files(tmp_path / "cut") == shard_files(tmp_path / "whole")
    assert again.train.fingerprint == whole.train.fingerprint
    assert again.manifest == whole.manifest


def text_of_every_kind(folder: Path, count: int) -> Path:
    """Files of each format, about as large as each other."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir()
    texts = {kind: paragraphs(count, seed).split("\n\n") for seed, kind in enumerate(("txt", "gz", "parquet", "zip"))}
    (folder / "a.txt").write_text("\n\n".join(texts["txt"]))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts["gz"])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    parquet.write_table(pyarrow.table({"text": texts["parquet"]}), folder / "c.parquet")
    with zipfile.ZipFile(folder / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, text in enumerate(texts["zip"]):
            archive.writestr(f"{number}.md", text)
    for number in range(20):
        (folder / f"e{number:02d}.txt").write_text(f"{number} " + paragraphs(2, number))
    return folder


def test_a_preparation_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path, small_shards: None) -> None:
    """Every run is killed when it has finished one more file than the last, before or after it has its name."""
    source = text_of_every_kind(tmp_path / "text", 60)
    program = f"""
import os, sys
from nextword.data import reader, shards, tokenizing
tokenizing.BATCH, reader.SHARD = 2000, 10_000
left, replace = int(sys.argv[1]), os.replace
def replace_some(*names):
    global left
    left -= 1
    if left < 0 and len(sys.argv) % 2:
        os.kill(os.getpid(), 9)
    replace(*names)
    if left < 0:
        os.kill(os.getpid(), 9)
os.replace = replace_some
shards.prepare([{str(source)!r}], {str(tmp_path / "cut")!r}, shards.DataConfig(vocabulary=300, deduplicate=True))
"""
    killed = 0
    while done := subprocess.run([sys.executable, "-c", program, str(5 * killed), *["x"] * (killed % 2)]).returncode:
        assert done == -signal.SIGKILL
        killed += 1
    assert killed > 5
    prepare([source], tmp_path / "whole", DataConfig(vocabulary=300, deduplicate=True))
    cut, whole = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("cut", "whole"))
    assert cut == whole


@pytest.mark.parametrize("kind", ["a.txt", "b.jsonl.gz", "c.parquet", "d.zip"])
def test_progress_follows_the_bytes_of_the_file_as_it_is_stored(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SMALL", 0)
    monkeypatch.setattr(shards, "SMALL", 0)
    monkeypatch.setattr(shards, "_AT_ONCE", 1 << 14)
    monkeypatch.setattr(reading, "PIECE", 1 << 14)
    monkeypatch.setattr(tokenizing, "BATCH", 1 << 14)
    source, told = text_of_every_kind(tmp_path / "text", 1500) / kind, dict[str, list[float]]()
    prepare([source], tmp_path / "data", DataConfig(vocabulary=300),
            progress=lambda share, stage: told.setdefault(stage, []).append(share))  # fmt: skip
    assert list(told) == ["checking the files", "training a tokenizer (bpe)", "choosing the validation text",
                          "tokenizing"]  # fmt: skip
    for shares in told.values():
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
        assert max(np.diff(shares)) < 0.5


def test_what_is_whole_is_not_written_again_and_what_changed_is(tmp_path: Path) -> None:
    source = lines_of(tmp_path / "a.jsonl", 100)
    first = prepare([source], tmp_path / "data", DataConfig(vocabulary=300))
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()}
    assert prepare([source], tmp_path / "data", DataConfig(vocabulary=300)).fingerprint == first.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").iterdir()} == times
    lines_of(source, 100, seed=1)
    assert prepare([source], tmp_path / "data", DataConfig(vocabulary=300)).fingerprint != first.fingerprint


def test_a_tokenizer_trained_before_is_not_confused_with_one_given_in_between(tmp_path: Path) -> None:
    source = lines_of(tmp_path / "a.jsonl", 100)
    first = prepare([source], tmp_path / "data", DataConfig(vocabulary=300))
    prepare([source], tmp_path / "data", tokenizer=train_tokenizer([], "bytes", 0))
    assert prepare([source], tmp_path / "data", DataConfig(vocabulary=300)).fingerprint == first.fingerprint


@pytest.mark.parametrize("files", ["*.bin", "*.pieces.npy"])
def test_a_file_that_is_missing_or_cut_off_or_changed_is_found(tmp_path: Path, files: str) -> None:
    prepare([lines_of(tmp_path / "a.jsonl", 100)], tmp_path / "data", DataConfig(tokenizer="bytes"))
    for path in sorted((tmp_path / "data").glob(files)):
        data = path.read_bytes()
        changed = data[:-1] + bytes([data[-1] ^ 1])
        for damaged in (changed, data[:-2], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(UsageError, match="prepare the data again"):
                open_dataset(tmp_path / "data", verify=True)
        path.write_bytes(data)
    open_dataset(tmp_path / "data", verify=True)


def test_a_full_disk_is_said_in_a_line_and_nothing_half_written_counts(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = lines_of(tmp_path / "a.jsonl", 300)
    write, calls = tokenizing._Shard.write, []

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_until_full(self: object, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            monkeypatch.setattr(os, "fsync", full)
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(tokenizing._Shard, "write", write_until_full)
        with pytest.raises(RunError, match="no space left on device") as caught:
            prepare([source], tmp_path / "data", DataConfig(tokenizer="bytes"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)
    monkeypatch.undo()
    names = {file.name for file in (tmp_path / "data").iterdir()}
    assert "train-00001.bin" in names
    assert not {name for name in names if name.endswith(".part") or "00002" in name}
    with pytest.raises(UsageError, match="incomplete"):
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
        prepare([source], tmp_path / "data", DataConfig(vocabulary=300))
    data = prepare([source], tmp_path / "data", DataConfig(vocabulary=300, skip_invalid=True))
    assert data.manifest.broken == 2
    assert data.train.documents + data.val.documents == 100


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_the_peak_of_memory_does_not_grow_with_the_text(tmp_path: Path, kind: str) -> None:
    """Parts are made smaller in proportion. Beside it the memory that holding all documents takes."""
    paragraph = paragraphs(3000).strip().split("\n\n")
    for name, times in (("small", 3), ("large", 12)):
        with (tmp_path / f"{name}.{kind}").open("w") as file:
            for number in range(times):
                for text in paragraph:
                    file.write(json.dumps({"text": f"{number} {text}"}) + "\n" if kind == "jsonl" else text + "\n")
    program = f"""
import sys
from pathlib import Path
from nextword.data import reader, reading, shards, splitting, survey, tokenizing
tokenizing.BATCH, reader.SHARD, survey.SMALL, reading.PIECE = 1 << 15, 1 << 19, 1 << 19, 1 << 16
splitting._LONGEST = 4000  # as small for the smaller text
folder = Path({str(tmp_path)!r})
def peak():  # not getrusage's, which begins with that of the process that started this one
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
characters = shards.train_tokenizer(["abcdefghijklmnopqrstuvwxyz 0123456789"], "characters", 0)
peaks, bytes = [], []
for name in ("small", "large"):
    data = shards.prepare([folder / f"{{name}}.{kind}"], folder / name, tokenizer=characters)
    peaks.append(peak())
    bytes.append(data.train.bytes + data.val.bytes)
held = list(reading.read_documents(folder / "large.{kind}"))
print(peaks[1] - peaks[0], peak() - peaks[0], bytes[1] - bytes[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    grown, held, more = map(int, done.stdout.split())
    assert grown < more / 5 < held


# ---- folders named by their content


def bytes_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Each file's time and content."""
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_text_that_is_added_makes_another_folder_and_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    lines_of(tmp_path / "text" / "a.jsonl", 60)
    first = prepare_in(tmp_path / "store", [tmp_path / "text"], DataConfig(vocabulary=300))
    before = bytes_of(first.folder)
    lines_of(tmp_path / "text" / "b.jsonl", 60, seed=1)
    second = prepare_in(tmp_path / "store", [tmp_path / "text"], DataConfig(vocabulary=300))
    assert second.fingerprint != first.fingerprint
    assert bytes_of(first.folder) == before
    assert open_dataset(first.folder, verify=True).fingerprint == first.fingerprint
    (tmp_path / "text" / "b.jsonl").unlink()
    (tmp_path / "text").rename(tmp_path / "moved")
    again = prepare_in(
        tmp_path / "store", [tmp_path / "moved"], DataConfig(vocabulary=300)
    )  # by content, wherever it lies
    assert again.folder == first.folder
    assert bytes_of(first.folder) == before


@pytest.mark.parametrize(
    "otherwise",
    [{"val_fraction": 0.1}, {"vocabulary": 310}, {"tokenizer": "bytes"}, {"skip_invalid": True}, {"column": "text"},
     {"encoding": "latin-1"}],
)  # fmt: skip
def test_whatever_the_tokens_depend_on_is_in_the_folders_name(tmp_path: Path, otherwise: dict[str, Any]) -> None:
    source = lines_of(tmp_path / "a.jsonl", 60)
    first = prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300))
    assert (
        prepare_in(tmp_path / "store", [source], DataConfig(**{"vocabulary": 300, **otherwise})).folder != first.folder
    )


def test_two_that_prepare_the_same_text_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, waiting = lines_of(tmp_path / "a.jsonl", 60), threading.Event()
    train, trained, said = shards.train_tokenizer, [], []

    def train_when_the_other_waits(*arguments: Any) -> Any:
        assert waiting.wait(20)
        trained.append(1)
        return train(*arguments)

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    monkeypatch.setattr(shards, "train_tokenizer", train_when_the_other_waits)
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(prepare_in, tmp_path / "store", [source], DataConfig(vocabulary=300), log=say) for _ in range(2)
        ]
        first, second = (each.result(30) for each in both)
    assert first.folder == second.folder
    assert (trained, said) == ([1], ["another command prepares this text; waiting for it"])


def test_what_was_interrupted_is_not_taken_for_whole_and_is_gone_on_with(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write, written = lines_of(tmp_path / "a.jsonl", 300), tokenizing._Shard.write, list[int]()

    def write_some(self: Any, *arguments: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(self, *arguments))  # type: ignore[func-returns-value]

    with monkeypatch.context() as patched:
        patched.setattr(tokenizing._Shard, "write", write_some)
        with pytest.raises(KeyboardInterrupt):
            prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300))
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".making"]
    monkeypatch.setattr(shards, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was there already"))
    data = prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300))
    assert data.fingerprint == prepare([source], tmp_path / "other", tokenizer=data.tokenizer()).fingerprint


def test_a_damaged_folder_is_made_again(tmp_path: Path) -> None:
    source = lines_of(tmp_path / "a.jsonl", 60)
    data = prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300))
    (data.folder / "train-00000.bin").unlink()
    assert prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300)).fingerprint == data.fingerprint


def test_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, train = lines_of(tmp_path / "a.jsonl", 60), shards.train_tokenizer

    def train_and_change(*arguments: Any) -> Any:
        made = train(*arguments)
        lines_of(source, 61)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(shards, "train_tokenizer", train_and_change)
        with pytest.raises(RunError, match="changed while it was being read"):
            prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300))
    assert prepare_in(tmp_path / "store", [source], DataConfig(vocabulary=300)).train.documents > 50


@pytest.mark.parametrize(("kind", "vocabulary"), [("bpe", 300), ("bpe", 500), ("characters", 0), ("bytes", 0)])
def test_bytes_a_token_are_measured_on_the_text(tmp_path: Path, kind: Any, vocabulary: int) -> None:
    source = lines_of(tmp_path / "a.jsonl", 200)
    measured = measure_bytes_per_token(find_sources([source]), DataConfig(tokenizer=kind, vocabulary=vocabulary))
    data = prepare([source], tmp_path / "data", DataConfig(tokenizer=kind, vocabulary=vocabulary))
    assert measured == pytest.approx(data.bytes_per_token, rel=0.02)
