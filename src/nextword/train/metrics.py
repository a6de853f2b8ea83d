"""metrics.jsonl: a line per step, evaluation and sample."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..base import UsageError, open_regular
from .callbacks import TrainStep

METRICS = "metrics.jsonl"
_MOST_BYTES = 4 << 30
_MOST_BETWEEN = 4 << 20  # bytes between two forecasts


def step_row(step: TrainStep) -> dict[str, Any]:
    """A step as a line of metrics.jsonl, with NaN as "nan"."""
    row = {**vars(step), "tokens_per_second": step.tokens_per_second}
    values = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return {name: value for name, value in values.items() if value not in ("", None)}


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Append a line of JSON to `path` atomically. An incomplete last line from a crash is removed first."""
    with path.open("ab+", buffering=0) as file:
        end = _cut_incomplete_line(file)
        try:
            line = memoryview(json.dumps(data).encode() + b"\n")
            while line:
                line = line[file.write(line) :]
        except BaseException:
            with suppress(OSError):
                file.truncate(end)
            raise


def _cut_incomplete_line(file: Any) -> int:
    """Remove an incomplete last line of an open file; returns the new length."""
    end: int = file.seek(0, os.SEEK_END)
    if end == 0 or (file.seek(end - 1), file.read(1))[1] == b"\n":
        return end
    file.seek(0)
    length = bytes(file.read()).rfind(b"\n") + 1
    file.truncate(length)
    return length


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, with "nan" as NaN; an incomplete last line is skipped."""
    with open_metrics(folder) as file:
        for line in file:
            if (row := row_of(line)) is not None:
                yield row


def row_of(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, with "nan" as NaN; None if it is incomplete."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    if b"nan" not in line and b"inf" not in line:
        return values
    return {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in values.items()}


def open_metrics(folder: Path) -> BufferedReader:
    """The file, for reading. Raises UsageError if there is none."""
    try:
        return open_regular(folder / METRICS, _MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{folder} has no {METRICS} ({error.strerror}); is it a run folder?") from None


def progress_of(folder: Path) -> tuple[int, bool]:
    """A run's completed steps, and whether a loss spike stopped it, from the last line of its metrics."""
    try:
        row = _last_row(folder, "loss")
    except UsageError:
        row = None
    if row is None:
        return 0, False
    action = row.get("action")
    return int(row["step"]) + (action not in ("stop", "rewind")), action == "stop"


def last_forecast(folder: Path) -> dict[str, Any] | None:
    """The last forecast of a run's end, with its `step`; None if there is none near the end of its metrics."""
    try:
        row = _last_row(folder, "forecast", _MOST_BETWEEN)
    except UsageError:
        row = None
    if row is None or not isinstance(row["forecast"], dict):
        return None
    return {"step": row.get("step"), **row["forecast"]}


def _last_row(folder: Path, key: str, most: int = _MOST_BYTES) -> dict[str, Any] | None:
    """The last line with `key`, looked for in the last `most` bytes, from the end."""
    with open_metrics(folder) as file:
        end, size = file.seek(0, os.SEEK_END), 1 << 14
        while True:
            start = file.seek(max(0, end - size))
            lines = file.read(end - start).split(b"\n")[1 if start else 0 :]
            rows = map(row_of, reversed(lines))
            row = next((row for row in rows if row and key in row), None)
            if row is not None or start == 0 or size >= most:
                return row
            size *= 8


def rejected_steps(folder: Path) -> list[dict[str, Any]]:
    """What the loss guard rejected, in order: step, action, reason. Empty without metrics."""
    try:
        rows = [row for row in read_metrics(folder) if row.get("action")]
    except UsageError:
        return []
    return list(map(rejection, rows))


def rejection(row: dict[str, Any]) -> dict[str, Any]:
    """Step, action and reason of a rejected step."""
    return {name: row.get(name, "") for name in ("step", "action", "reason")}
