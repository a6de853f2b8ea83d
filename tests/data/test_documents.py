"""Files into documents: what is text is found in a fixed order, and what is broken is named by its line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from nextword.base import RunError, UsageError
from nextword.data import Faults, check_encoding, find_sources, read_documents, reading


def texts(path: Path, faults: Faults | None = None, column: str | None = None) -> list[str]:
    return [document.text for document in read_documents(path, faults, column)]


def rows(path: Path, *lines: object) -> Path:
    """A file of JSON lines; what is given as text is written as it is."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_folders_are_walked_in_order_and_what_is_no_text_is_counted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.jsonl", "c.TXT", "table.csv", ".git/deep/down/x.txt", "a/.hidden.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").touch()
    found = find_sources([tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["a/b.jsonl", "a/z.md", "b.txt", "c.TXT"]
    assert found.unread == {".csv": 1}
    assert found.skipped == {"binary": 1, "empty": 1, "hidden": 2}


def test_all_that_was_skipped_is_said_in_one_line_with_how_many_of_which_kind(tmp_path: Path) -> None:
    for name in ("a.txt", "b.rst", "c.rst", "d.py", "e.html", "f.rar", "LICENSE", ".g", "h.txt.rar"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").touch()
    assert find_sources([tmp_path]).skipped_line() == (
        "skipped 9 files: no reader for .rst (2), .rar (2), files without an extension (1), .py (1), .html (1);"
        " empty (1); hidden (1)"
    )
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_text("text")
    assert find_sources([tmp_path / "only"]).skipped_line() == ""


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("a.rst", b"text", r"no reader for \.rst\. Accepted: \.txt"), ("a.txt", b"a\0b", "the file is binary"),
     ("a.txt", b"", "the file is empty")],
)  # fmt: skip
def test_a_file_that_is_named_and_not_read_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        find_sources([tmp_path / name])


def test_a_folder_with_nothing_to_read_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.rst").write_text("text")
    with pytest.raises(UsageError, match=r"no text in .*; skipped 1 file: no reader for \.rst \(1\)"):
        find_sources([tmp_path])


def test_the_folders_of_runs_are_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "runs/one/run.json", "runs/one/metrics.jsonl", "runs/one/checkpoints/x.txt", "runs/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = find_sources([tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["a.txt", "runs/b.txt"]
    assert found.skipped_line() == "skipped 3 files: in training runs (3)"
    with pytest.raises(UsageError, match="in training runs"):
        find_sources([tmp_path / "runs" / "one"])


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert find_sources([tmp_path / "a.txt", tmp_path, tmp_path / "a.txt"]).files == (tmp_path / "a.txt",)


@pytest.mark.parametrize(("make", "message"), [(True, r"looked for \.txt.*\.parquet"), (False, "no such file")])
def test_nothing_found_says_where_and_for_what_was_looked(tmp_path: Path, make: bool, message: str) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        find_sources([folder])
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_a_text_file_is_one_document_with_its_line_ends_and_without_a_byte_order_mark(
    tmp_path: Path, name: str
) -> None:
    text = "one\r\n\r\ntwo — three\n"
    data = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(tmp_path / name) == [text]


@pytest.mark.parametrize("unit", ["línea de texto\n", "ohne Zeilenende — ", "\U0001f600", "x\U0001f600é"])
def test_a_long_text_comes_in_parts_that_are_the_text_together(
    tmp_path: Path, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 1001)
    text = unit * (30_000 // len(unit.encode()))
    (tmp_path / "a.txt").write_text(text)
    parts = texts(tmp_path / "a.txt")
    assert "".join(parts) == text
    assert len(parts) > 1
    assert max(len(part.encode()) for part in parts) <= 2 * 1001 + 3


def test_json_lines_give_a_document_a_row_from_text_or_content_or_the_column_named(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl", {"text": "one", "body": "eins"}, "", {"content": "two", "body": "zwei"}, '"three"'
    )
    assert texts(path) == ["one", "two", "three"]
    path = rows(tmp_path / "b.jsonl", {"text": "one", "body": "eins"}, {"content": "two", "body": "zwei"})
    assert texts(path, column="body") == ["eins", "zwei"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a row is a list"),
        ('{"title": "x"}', "the row has: title"),
        ('{"text": null}', "no text in 'text' or 'content'"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_broken_row_is_named_by_its_line_or_counted(tmp_path: Path, line: str, reason: str) -> None:
    path = rows(tmp_path / "a.jsonl", {"text": "one"}, "", line, {"text": "two"})
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 3: .*{reason}.*data.skip_invalid=true") as caught:
        texts(path)
    assert "\n" not in str(caught.value)
    faults = Faults(skip=True)
    assert texts(path, faults) == ["one", "two"]
    assert faults.count == 1


@pytest.mark.parametrize("piece", [reading.PIECE, 10])
def test_text_that_is_no_utf8_is_refused_or_skipped_whole(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never are its bytes taken for U+FFFD, and never is a part of it read that came before."""
    monkeypatch.setattr(reading, "PIECE", piece)
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\ncaf\xe9\nfour\n")
    with pytest.raises(UsageError, match=r"a\.txt, line 3: not valid UTF-8 \(byte 0xE9\).*--set data.encoding=latin-1"):
        texts(tmp_path / "a.txt")
    faults = Faults(skip=True)
    assert texts(tmp_path / "a.txt", faults) == []
    assert faults.count == 1


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_text_of_another_encoding_is_read_in_it(tmp_path: Path, name: str, encoding: str) -> None:
    text = "Müller trinkt café"
    whole = json.dumps(text, ensure_ascii=False) + "\n" if name.endswith("jsonl") else text
    (tmp_path / name).write_bytes(whole.encode(encoding))
    assert [document.text for document in read_documents(tmp_path / name, encoding=encoding)] == [text]
    if encoding != "utf-8":
        with pytest.raises(UsageError, match=r"line 1: not valid UTF-8.*--set data.encoding=latin-1"):
            texts(tmp_path / name)
        faults = Faults(skip=True)
        assert texts(tmp_path / name, faults) == []
        assert faults.count == 1


@pytest.mark.parametrize("piece", [reading.PIECE, 7])
def test_text_of_two_bytes_a_character_is_read_whole(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    text = "eine Zeile\nund noch eine — länger\n"
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16"))
    assert find_sources([tmp_path], encoding="utf-16").files
    assert "".join(each.text for each in read_documents(tmp_path / "a.txt", encoding="utf-16")) == text


@pytest.mark.parametrize("name", ["nonsense", "rot13"])
def test_an_encoding_that_is_none_is_refused_with_some_that_are(name: str) -> None:
    with pytest.raises(UsageError, match=rf"encoding .{name}. is not known.*latin-1"):
        check_encoding(name)


def test_the_parts_of_a_long_text_say_where_it_begins_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 100)
    (tmp_path / "a.txt").write_text("a line of text\n" * 50)
    parts = list(read_documents(tmp_path / "a.txt"))
    assert len(parts) > 3
    assert [part.first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_lines_are_counted_through_all_parts_of_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", 100)
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 50 + b"x" * 1000 + b"\n\xff\n")
    with pytest.raises(UsageError, match=r"a\.txt, line 52:"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_gzip_file_that_breaks_off_is_named_or_counted(tmp_path: Path, name: str) -> None:
    data = b"".join(json.dumps({"text": str(number)}).encode() + b"\n" for number in range(2000))
    (tmp_path / name).write_bytes(gzip.compress(data)[:-500])
    with pytest.raises(UsageError, match="incomplete or damaged"):
        texts(tmp_path / name)
    faults = Faults(skip=True)
    texts(tmp_path / name, faults)
    assert faults.count == 1


def test_a_file_that_cannot_be_read_is_no_fault_of_the_text(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        texts(tmp_path / "gone.txt", Faults(skip=True))


def test_parquet_rows_are_documents_whatever_their_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = [f"row {number}" for number in range(1000)]
    parquet.write_table(pyarrow.table({"id": range(1000), "text": values}), tmp_path / "a.parquet", row_group_size=300)
    assert texts(tmp_path / "a.parquet") == values
    with pytest.raises(UsageError, match="no column body; it has id, text"):
        texts(tmp_path / "a.parquet", column="body")


def test_a_broken_row_or_file_of_parquet_is_named_or_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, pyarrow.array([b"one", b"\xff\xfe"], type=pyarrow.binary()).buffers()
    )
    parquet.write_table(pyarrow.table({"text": bad}), path)
    with pytest.raises(UsageError, match=r"a\.parquet, row 2"):
        texts(path)
    faults = Faults(skip=True)
    assert texts(path, faults) == ["one"]
    assert faults.count == 1
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="an incomplete Parquet file"):
        texts(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"nextword\[parquet\]"):
        texts(tmp_path / "a.parquet")
