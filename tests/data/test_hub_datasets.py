"""Data sets of the hub: streamed through `datasets`, here from a local folder that has a hub repository's layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import RunError, UsageError
from nextword.data import find_sources, hub_datasets, read_documents

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))


def repository(folder: Path, count: int) -> list[dict[str, Any]]:
    rows = [{"id": number, "text": f"row {number} — é", "picture": None} for number in range(count)]
    folder.mkdir()
    for part in range(2):
        lines = [json.dumps(row) + "\n" for row in rows[part * count // 2 : (part + 1) * count // 2]]
        (folder / f"train-{part}.jsonl").write_text("".join(lines))
    (folder / "load.py").write_text("raise SystemExit('code of a data set was run')")
    return rows


def kept(folder: Path) -> list[dict[str, str]]:
    text = b"".join(gzip.decompress(file.read_bytes()) for file in sorted(folder.glob("*.gz")))
    return [json.loads(line) for line in text.splitlines()]


def test_rows_are_kept_as_compressed_text_in_their_order_and_read_like_a_folder(tmp_path: Path) -> None:
    rows = repository(tmp_path / "repository", 50)
    sources = find_sources([f"hf:{tmp_path / 'repository'}"])
    texts = [document.text for file in sources.files for document in read_documents(file)]
    assert texts == [row["text"] for row in rows]
    assert kept(sources.files[0].parent) == [{"text": row["text"]} for row in rows]
    assert find_sources([f"hf:{tmp_path / 'repository'}"]).files == sources.files


def test_an_interrupted_download_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = repository(tmp_path / "repository", 60)
    monkeypatch.setattr(hub_datasets, "PART", 400)
    write, written = hub_datasets._write_part, list[int]()

    def write_some(remaining: Any, file: Any) -> bool:
        if len(written) == 3:
            raise OSError("connection reset")
        written.append(1)
        return write(remaining, file)

    with monkeypatch.context() as patched:
        patched.setattr(hub_datasets, "_write_part", write_some)
        with pytest.raises(RunError, match=r"connection reset.*next call continues"):
            hub_datasets.fetch(str(tmp_path / "repository"), tmp_path / "store")
    (folder,) = (path for path in (tmp_path / "store").iterdir() if path.is_dir())
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.gz")}
    assert len(before) == 3
    assert hub_datasets.fetch(str(tmp_path / "repository"), tmp_path / "store") == folder
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert [row["text"] for row in kept(folder)] == [row["text"] for row in rows]


def test_a_file_of_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "book.txt").write_text("one\ntwo\n\nthree\n")
    folder = hub_datasets.fetch(str(tmp_path / "repository"), tmp_path / "store")
    assert kept(folder) == [{"text": "one\ntwo\n\nthree\n"}]


def test_what_cannot_be_reached_says_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"hf:.*nowhere could not be read .*give a folder of text") as caught:
        hub_datasets.fetch(str(tmp_path / "nowhere"), tmp_path / "store")
    assert "\n" not in str(caught.value)


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.base.extras.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"nextword\[datasets\]"):
        find_sources(["hf:owner/name"])
