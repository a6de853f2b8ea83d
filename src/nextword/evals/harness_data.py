"""The local files behind a harness task's splits, with the types that the harness's own reader gives their columns."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from .reading import read_rows

READERS = ("json", "csv", "parquet")
_IGNORED = ("trust_remote_code", "split", "name", "encoding")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_EMPTY = {"", *"NA N/A NaN nan null NULL None #N/A <NA> n/a -nan -NaN 1.#IND 1.#QNAN".split()}  # noqa: SIM905
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?Z?)?", re.ASCII)


class Splits:
    """Reads a split when it is asked for, and once. `notes` says where the harness would read something else."""

    def __init__(self, given: Mapping[str, Any], path: Path, skip_bad: bool = False) -> None:
        reader, options = given.get("dataset_path"), dict(given.get("dataset_kwargs") or {})
        files = options.pop("data_files", None)
        if reader not in READERS or not files:
            raise UsageError(
                f"{path}: its data is {reader!r}, which would have to be fetched. Data is read from local files:"
                " dataset_path: json (or csv, parquet), dataset_kwargs: {data_files: ...}"
            )
        separators = [options.pop(name) for name in ("sep", "delimiter") if options.get(name)]
        self.separator = str(separators[0]) if separators else None
        for name, value in options.items():
            if name not in _IGNORED and value is not None:
                raise UsageError(
                    f"{path}: dataset_kwargs has {str(name)!r}, which is not read. There is: data_files, sep"
                )
        self.path, self.reader, self.skip_bad, self.notes = path, reader, skip_bad, list[str]()
        self.files: dict[str, Any] = files if isinstance(files, dict) else {"train": files}
        self._found: dict[str, list[dict[str, Any]]] = {}

    def read(self, split: str) -> list[dict[str, Any]]:
        """All rows of a split, every one with the same columns."""
        if split not in self.files:
            raise UsageError(
                f"{self.path}: no file is named for the split {split!r}.{closest(split, map(str, self.files))}"
                f" There is: {', '.join(map(str, self.files))}"
            )
        if split not in self._found:
            self._found[split] = self._rows(split)
        return self._found[split]

    def _rows(self, split: str) -> list[dict[str, Any]]:
        rows = [row for file in self.paths(split) for row in self._file(file)]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        whole = {name: [row.get(name) for row in rows] for name in columns}
        if self.reader == "json":
            whole = {name: unified(values) for name, values in whole.items()}
            self._note_dates(split, whole)
        return [{name: whole[name][number] for name in columns} for number in range(len(rows))]

    def paths(self, split: str) -> list[Path]:
        """The files of a split."""
        named = self.files[split]
        return [file for name in (named if isinstance(named, list) else [named]) for file in self._named(str(name))]

    def _named(self, name: str) -> list[Path]:
        """Files beside the task file, or from where one stands; a pattern names several."""
        if not glob.has_magic(name):
            beside = self.path.parent / name
            return [beside if beside.is_file() else Path(name)]
        for folder in (self.path.parent, Path()):
            if found := sorted(glob.glob(str(folder / name), recursive=True)):
                return [Path(file) for file in found]
        raise UsageError(f"{self.path}: no file has a name like {name!r}")

    def _file(self, file: Path) -> list[dict[str, Any]]:
        if self.separator is not None and _SEPARATORS.get(file.suffix) != self.separator:
            raise UsageError(
                f"{self.path}: {file.name} is not read with {self.separator!r} between its fields: .csv has commas,"
                " .tsv has tabs. Convert the file"
            )
        found = read_rows(file, self.skip_bad)
        self.notes += found.broken
        rows = list(found.rows)
        return typed(rows) if self.reader == "csv" else rows

    def _note_dates(self, split: str, columns: Mapping[str, Sequence[Any]]) -> None:
        for name, values in columns.items():
            there = [value for value in values if value is not None]
            if there and all(isinstance(value, str) and _DATE.fullmatch(value) for value in there):
                self.notes.append(
                    f"{split}: column {name!r} holds dates; they stay the text that they are ({there[0]}), where"
                    " lm-evaluation-harness writes day and time"
                )


def typed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Columns of a CSV file as the harness's reader types them: whole numbers, numbers, truth values, else text."""
    columns = {name: [None if row[name] in _EMPTY else row[name] for row in rows] for name in rows[0]}
    made = {name: _column(values) for name, values in columns.items()}
    return [{name: made[name][number] for name in made} for number in range(len(rows))]


def _column(values: list[str | None]) -> list[Any]:
    there = [value for value in values if value is not None]
    if there and all(value in ("True", "False", "true", "false", "TRUE", "FALSE") for value in there):
        return [None if value is None else value.lower() == "true" for value in values]
    if not all(value.isascii() and "_" not in value for value in there):
        return list(values)  # what Python takes for a number, and the harness's reader does not
    for kind in (int, float):
        try:
            made = [None if value is None else kind(value) for value in values]
        except ValueError:
            continue
        if kind is int and len(there) < len(values):  # a column with gaps holds floats
            continue
        return made
    return list(values)


def unified(values: Sequence[Any]) -> list[Any]:
    """A column of a JSON file as Arrow holds it: numbers are all floats if one is, keys stand as in the first row."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        if any(isinstance(value, float) for value in there):
            return [None if value is None else float(value) for value in values]
    elif all(isinstance(value, list) for value in there):
        flat = iter(unified([each for value in there for each in value]))
        return [None if value is None else list(islice(flat, len(value))) for value in values]
    elif all(isinstance(value, dict) and value.keys() == there[0].keys() for value in there):
        fields = {name: iter(unified([value[name] for value in there])) for name in there[0]}
        return [None if value is None else {name: next(fields[name]) for name in fields} for value in values]
    return list(values)
