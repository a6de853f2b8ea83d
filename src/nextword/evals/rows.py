"""Reads rows of labelled data from CSV, TSV, JSONL, JSON and Parquet files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import UsageError, open_regular, read_text, require

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
LARGEST = 1 << 30  # bytes of a file, which is read into memory


@dataclass(frozen=True)
class Rows:
    """The rows of a file; `broken` lists the skipped ones, with reasons."""

    rows: tuple[dict[str, Any], ...]
    broken: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in order of appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))


def read_rows(path: Path, skip_invalid: bool = False) -> Rows:
    """All rows of a file. Raises UsageError for a file that cannot be read, is empty, or has a broken row.

    With `skip_invalid`, broken rows are skipped and listed in the result.
    """
    try:
        size = path.stat().st_size
        if path.suffix not in SUFFIXES:
            raise UsageError(f"{path}: unknown format. Use {', '.join(SUFFIXES)}")
        if size > LARGEST:
            raise UsageError(f"{path}: {size / 1e9:.1f} GB; an evaluation's data is at most {LARGEST / 1e9:.1f} GB")
        parsed = list(_PARSERS[path.suffix](path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start}). Convert it first") from None
    broken = tuple(f"{path}, line {line}: {fault}" for line, fault in parsed if isinstance(fault, str))
    if broken and not skip_invalid:
        more = f" ({len(broken)} such rows)" if len(broken) > 1 else ""
        raise UsageError(f"{broken[0]}{more}. Fix it, or skip such rows with --skip-invalid")
    rows = tuple(row for _, row in parsed if not isinstance(row, str))
    if not rows:
        raise UsageError(f"{path}: holds no rows")
    return Rows(rows, broken)


Found = Iterator[tuple[int, dict[str, Any] | str]]  # line, and the row or its error


def _separated(path: Path) -> Found:
    text = read_text(path, LARGEST, "utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UsageError(f"{path}: not CSV in its first line ({error})") from None
            yield line, f"not CSV ({error})"
            line = reader.line_num + 1  # the reader continues after the broken row
            continue
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                raise UsageError(f"{path}: two columns have the same name in the first line")
        elif len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True))
        elif fields:
            yield line, f"{len(fields)} fields where the header has {len(header)}"
        line = reader.line_num + 1


def _json_lines(path: Path) -> Found:
    with io.TextIOWrapper(open_regular(path, LARGEST), encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, _object(text)


def _object(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else "not a JSON object"


def _json(path: Path) -> Found:
    try:
        value = json.loads(read_text(path, LARGEST, "utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        if "Extra data" in str(error):  # JSON lines with the extension .json
            yield from _json_lines(path)
            return
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, list):
        raise UsageError(f"{path}: a JSON data file must be a list of objects, one per row")
    for number, row in enumerate(value, 1):
        yield number, row if isinstance(row, dict) else "not a JSON object"


def _parquet(path: Path) -> Found:
    require("pyarrow", str(path))
    import pyarrow
    from pyarrow import parquet

    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


_PARSERS = {".csv": _separated, ".tsv": _separated, ".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}
