"""metrics.jsonl: a line per step, evaluation and sample."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base import UsageError, read_text
from .callbacks import TrainStep

_MOST_BYTES = 4 << 30


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
    try:
        lines = read_text(folder / "metrics.jsonl", _MOST_BYTES).splitlines()
    except OSError as error:
        raise UsageError(f"{folder} has no metrics.jsonl ({error.strerror}); is it a run folder?") from None
    for line in lines:
        with suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict):
                yield {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in values.items()}


def progress_of(folder: Path) -> tuple[int, bool]:
    """A run's completed steps, and whether a loss spike stopped it, from the last line of its metrics."""
    try:
        row = next((row for row in reversed(list(read_metrics(folder))) if "loss" in row), None)
    except UsageError:
        row = None
    if row is None:
        return 0, False
    action = row.get("action")
    return int(row["step"]) + (action not in ("stop", "rewind")), action == "stop"


def rejected_steps(folder: Path) -> list[dict[str, Any]]:
    """What the loss guard rejected, in order: step, action, reason. Empty without metrics."""
    try:
        rows = [row for row in read_metrics(folder) if row.get("action")]
    except UsageError:
        return []
    return [{name: row.get(name, "") for name in ("step", "action", "reason")} for row in rows]
