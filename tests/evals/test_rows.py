"""Rows of labelled data from files, and what is wrong with them, by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.evals.rows import read_rows
from nextword.evals.task import row_digests

ROWS = ({"text": "a joy", "label": "good"}, {"text": 'so "slow",\nand cold', "label": "bad"})


def written(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding, newline="")
    return path


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig"]
)  # a spreadsheet's files begin with a mark of their encoding
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_the_same_rows_come_from_every_format(suffix: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    with path.open("w", encoding=encoding, newline="") as file:
        if suffix == "json":
            json.dump(ROWS, file)
        elif suffix == "jsonl":
            file.write("\n".join(map(json.dumps, ROWS)))
        else:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    found = read_rows(path)
    assert found.rows == ROWS
    assert found.columns == ("text", "label")


def test_parquet_gives_the_same_rows_or_names_its_extra(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(UsageError, match=r"pip install 'nextword\[parquet\]'"):
            read_rows(path)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(ROWS)), path)
        assert read_rows(path).rows == ROWS
        path.write_bytes(b"no such thing")
        with pytest.raises(UsageError, match="not a Parquet file"):
            read_rows(path)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    expected = tuple({"text": text, "label": label} for text, label in rows)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, expected)), encoding="utf-8")
    assert read_rows(folder / "rows.csv").rows == expected
    assert read_rows(folder / "rows.jsonl").rows == expected


BROKEN = {
    "rows.csv": (
        'text,label\na,x\n"two\nlines",x\nb\n\n"c"d,x\ne,x,more\nf,y\n',
        {5: "1 fields where the header has 2", 7: "not CSV", 8: "3 fields where the header has 2"},
        ["a", "two\nlines", "f"],
    ),
    "rows.jsonl": (
        '{"text": "a"}\n\n{"text": \n["b"]\n{"text": "f"}\n',
        {3: "not JSON", 4: "not a JSON object"},
        ["a", "f"],
    ),
    "rows.json": ('[{"text": "a"}, 3, {"text": "f"}]', {2: "not a JSON object"}, ["a", "f"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_named_by_line_and_only_they_are_left_out(name: str, tmp_path: Path) -> None:
    text, faults, left = BROKEN[name]
    path = written(tmp_path, name, text)
    first = min(faults)
    with pytest.raises(UsageError) as refused:
        read_rows(path)
    assert f"{path}, line {first}: {faults[first]}" in str(refused.value)
    assert "--skip-invalid" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(faults) == 1 or f"({len(faults)} such rows)" in str(refused.value)
    found = read_rows(path, skip_invalid=True)
    assert [row["text"] for row in found.rows] == left
    assert len(found.broken) == len(faults)
    for told, (line, fault) in zip(found.broken, faults.items(), strict=True):
        assert told.startswith(f"{path}, line {line}: {fault}")


def test_a_quote_that_never_closes_is_told_with_the_line_where_it_opens(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'text,label\na,x\n"b,x\nc,y\n')
    with pytest.raises(UsageError, match="line 3: not CSV"):
        read_rows(path)


def test_objects_line_by_line_are_read_under_the_name_json_too(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.json", "\n".join(map(json.dumps, ROWS)))
    assert read_rows(path).rows == ROWS


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "", "holds no rows"),
        ("rows.csv", "text,label\n", "holds no rows"),
        ("rows.jsonl", "\n\n", "holds no rows"),
        ("rows.json", "[]", "holds no rows"),
        ("rows.json", '{"rows": []}', "a list of objects"),
        ("rows.json", "[1", "not JSON"),
        ("rows.csv", "text,text\na,b\n", "two columns have the same name"),
        ("rows.csv", '"text"x,label\na,b\n', "not CSV"),
        ("rows.txt", "a", "unknown format. Use .csv"),
    ],
)
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_a_file_without_rows_is_refused_in_one_line(
    name: str, text: str, said: str, skip_invalid: bool, tmp_path: Path
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(UsageError) as refused:
        read_rows(path, skip_invalid)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="this is a folder"):
        read_rows(tmp_path / "folder.csv")
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="not a regular file"):
        read_rows(tmp_path / "endless.jsonl")
    for name, text in (("rows.csv", "text\nna\u00efve\n"), ("rows.jsonl", '{"text": "na\u00efve"}')):
        with pytest.raises(UsageError, match="not UTF-8 text"):
            read_rows(written(tmp_path, name, text, "latin-1"))


def test_a_row_has_one_digest_wherever_it_stands_and_the_second_of_two_equal_ones_its_own() -> None:
    first, second = row_digests([{"a": 1, "b": "x"}, {"a": 2}]), row_digests([{"a": 2}, {"b": "x", "a": 1}])
    assert (first[0], first[1]) == (second[1], second[0])
    assert len(set(row_digests([{"a": 1}, {"a": 1}, {"a": "1"}]))) == 3
