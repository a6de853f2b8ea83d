"""Columns of a task file's data: typed as lm-evaluation-harness types them, and refused by name where not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.evals.harness import load_harness_task
from nextword.evals.harness_data import Splits

READ: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "oracles/harness/columns.json").read_text(encoding="utf-8")
)


def splits(folder: Path, reader: str, files: Any, **options: Any) -> Splits:
    return Splits({"dataset_path": reader, "dataset_kwargs": {"data_files": files, **options}}, folder / "task.yaml")


@pytest.mark.parametrize("name", READ)
def test_columns_have_the_types_that_the_harness_s_reader_gives_them(name: str, tmp_path: Path) -> None:
    case = READ[name]
    (tmp_path / f"rows.{case['reader']}").write_text(case["text"], encoding="utf-8")
    found = splits(tmp_path, case["reader"], {"test": f"rows.{case['reader']}"}).read("test")
    assert repr(found) == case["rows"]  # as templates write them: 1 is not 1.0, and True is not 'True'


def test_several_files_and_patterns_make_one_split(tmp_path: Path) -> None:
    for name, row in (("b", {"x": 2}), ("a", {"x": 1, "y": "z"}), ("c", {"x": 3})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    expected = [{"x": 1, "y": "z"}, {"x": 2, "y": None}, {"x": 3, "y": None}]
    assert splits(tmp_path, "json", {"test": "*.jsonl"}).read("test") == expected
    assert splits(tmp_path, "json", {"test": ["a.jsonl", "[bc].jsonl"]}).read("test") == expected
    assert splits(tmp_path, "json", "*.jsonl").read("train") == expected
    with pytest.raises(UsageError, match=r"no file has a name like 'd\*.jsonl'"):
        splits(tmp_path, "json", {"test": "d*.jsonl"}).read("test")


def test_tabs_are_read_and_other_separators_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("q\tn\na,b\t1\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text("q;n\na;1\n", encoding="utf-8")
    assert splits(tmp_path, "csv", {"test": "rows.tsv"}, sep="\t").read("test") == [{"q": "a,b", "n": 1}]
    with pytest.raises(UsageError, match=r"rows\.csv is not read with ';' between its fields"):
        splits(tmp_path, "csv", {"test": "rows.csv"}, delimiter=";").read("test")


@pytest.mark.parametrize("option", ["field", "column_names", "skiprows", "data_dir"])
def test_an_option_of_reading_that_is_not_known_is_refused_and_not_passed_over(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"dataset_kwargs has '{option}', which is not read"):
        splits(tmp_path, "json", {"test": "x.json"}, **{option: "data"})


def test_dates_stay_text_and_the_difference_is_told(tmp_path: Path) -> None:
    rows = [{"q": "2020-01-02", "s": "2020-01-02", "n": 2020}, {"q": "2021-10-02 10:00:00", "s": "later", "n": 2021}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "output_type": "generate_until", "test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "s",
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(config), encoding="utf-8")
    task = load_harness_task(tmp_path / "task.yaml")
    assert task.items[0].values["q"] == "2020-01-02"
    assert len(task.notes) == 1
    assert "column 'q' holds dates" in task.notes[0]
