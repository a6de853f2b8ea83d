"""Runs while they are being written: a summary of each, and what its curve has gained since it was last read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..base import UsageError
from ..plan import parameters
from .metrics import last_forecast, open_metrics, progress_of, rejection, row_of
from .run_dir import Measured, RunRecord, is_locked, read_report


def summary(folder: Path, record: RunRecord) -> dict[str, Any]:
    """A run as a row of `nextword runs list`.

    `tokens` and `steps` are the planned ones, or the number of steps last expected, until it is finished; `forecast` is
    that of its end.
    `state` is "finished", "running", "stopped" (by a loss spike) or "interrupted".
    """
    measured, run = measured_of(folder, record), record.current
    step, stopped = progress_of(folder)
    forecast = None if measured else last_forecast(folder)
    expected = forecast["steps"] if forecast and run.train.minutes and not record.changes else run.train.steps
    state = "finished" if measured else "running" if is_locked(folder) else "stopped" if stopped else "interrupted"
    return {
        "folder": str(folder),
        "kind": run.spec.kind,
        "parameters": parameters(run.spec).total,
        "tokens": measured.tokens if measured else run.total_tokens,
        "step": step,
        "steps": measured.steps if measured else expected,
        "nats_per_token": measured.nats_per_token if measured else None,
        "bits_per_byte": measured.bits_per_byte if measured else None,
        "forecast": forecast,
        "state": state,
        "created": record.created,
        "base": run.model.base or None,
        "changes": [change.to_dict() for change in record.changes],
    }


def run_json(folder: Path, record: RunRecord, measured: Measured | None) -> dict[str, Any]:
    """A run's configuration, prediction and measurements, as plain data."""
    units = {"memory": "bytes", "seconds": "s", "tokens_per_second": "tokens/s", "nats_per_token": "nats/token",
             "bits_per_byte": "bits/byte"}  # fmt: skip
    return {
        "folder": str(folder), "config": record.config.to_dict(), "units": units,
        "predicted": asdict(record.expected) if record.expected else None,
        "measured": asdict(measured) if measured else None,
    }  # fmt: skip


def measured_of(folder: Path, record: RunRecord) -> Measured | None:
    """What the run measured, if it finished; a report from before it was extended does not count."""
    measured = read_report(folder)
    return measured if record.ended(measured) else None


class Point(NamedTuple):
    """Where a run is: the step, and all tokens and seconds up to its end. `loss` is that step's, in nats a token."""

    step: int
    tokens: int
    seconds: float
    loss: float


class Evaluation(NamedTuple):
    """The held-out loss after `step` steps."""

    step: int
    tokens: int
    seconds: float
    nats_per_token: float
    bits_per_byte: float
    error: float  # standard error of nats_per_token; NaN: unknown


@dataclass
class Curve:
    """A run's steps that count, evaluations and samples, all of them or (`whole` is false) those after a place.

    `place` is given to `curve_of` to read on. `rejected`: what the loss guard rejected. `latest`: the last step's
    learning rate, gradient norm and speed.
    """

    place: str = ""
    whole: bool = True
    points: list[Point] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, Any] = field(default_factory=dict)


def curve_of(folder: Path, after: str = "") -> Curve:
    """A run's curve; with the `place` of an earlier one, what came since, unless the run was rewound or restarted.

    Of a rewound run only the steps after the rewinding count. A last line that is being written is left for the next
    time. Raises UsageError without metrics.jsonl.
    """
    with open_metrics(folder) as file:
        status = os.fstat(file.fileno())
        offset, begun = _parsed(after, status.st_ino, status.st_size)
        file.seek(offset)
        curve, evaluations, latest = Curve(whole=begun is _START), {}, {}
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            row = row_of(line) or {}
            step, val, sample = row.get("step"), row.get("val"), row.get("sample")
            if not isinstance(step, int):
                continue
            if isinstance(val, dict):
                evaluations[step] = val
            elif isinstance(sample, str):
                curve.samples.append((step, sample))
            elif "loss" in row:
                if step <= begun.step:
                    return curve_of(folder)
                if row.get("action"):
                    curve.rejected.append(rejection(row))
                _append(curve.points, begun, step, row)
                latest = row
    places = {point.step + 1: point for point in (_START, begun, *curve.points)}
    curve.evaluations = [_evaluation(places[step], evaluations[step]) for step in sorted(evaluations) if step in places]
    curve.latest = {name: latest[name] for name in _LATEST if name in latest}
    last = curve.points[-1] if curve.points else begun
    curve.place = f"{status.st_ino}_{offset}_{last.step}_{last.tokens}_{last.seconds!r}"
    return curve


_START = Point(-1, 0, 0.0, math.nan)
_LATEST = ("learning_rate", "gradient_norm", "tokens_per_second", "share_of_peak")


def _parsed(place: str, inode: int, size: int) -> tuple[int, Point]:
    """The offset of a place in the file, and the last point before it; the start if the file is another one now."""
    if not place:
        return 0, _START
    try:
        (own, offset, step, tokens), seconds = map(int, place.split("_")[:-1]), float(place.split("_")[-1])
    except ValueError:
        raise UsageError(f"after {place[:40]!r} is not the place of an earlier answer") from None
    if own != inode or not 0 < offset <= size:
        return 0, _START
    return offset, Point(step, tokens, seconds, math.nan)


def _append(points: list[Point], begun: Point, step: int, row: dict[str, Any]) -> None:
    """Add a step, which takes back those that a rewinding left behind."""
    while points and points[-1].step >= step:
        points.pop()
    last = points[-1] if points else begun
    tokens, seconds = number(row, "tokens", 0), number(row, "seconds", 0)
    points.append(Point(step, last.tokens + int(tokens), last.seconds + seconds, number(row, "loss", math.nan)))


def _evaluation(at: Point, val: dict[str, Any]) -> Evaluation:
    nats, bits = number(val, "nats_per_token", math.nan), number(val, "bits_per_byte", math.nan)
    return Evaluation(at.step + 1, at.tokens, at.seconds, nats, bits, number(val, "error", math.nan))


def number(row: Mapping[str, Any], name: str, default: float) -> float:
    """A finite number of a row, or else `default`."""
    value = row.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else default


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: each stands for as many steps, with the mean of their finite losses."""
    size = -(-len(points) // most)
    return list(points) if size <= 1 else [_mean(points[at : at + size]) for at in range(0, len(points), size)]


def _mean(points: Sequence[Point]) -> Point:
    finite = [point.loss for point in points if math.isfinite(point.loss)]
    return points[-1]._replace(loss=sum(finite) / len(finite) if finite else math.nan)
