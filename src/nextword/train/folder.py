"""A run's folder: what was planned, what happened, and the model.

run.json          configuration, data, prediction
metrics.jsonl     a line a step, a line an evaluation
checkpoints/      step-…: what the run goes on from
report.json       predicted and measured, when it has ended
curve.svg         the loss, drawn (needs nextword[plot])
config.json, model.safetensors, tokenizer.json   the model as other programs open it
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..base import UsageError, atomic_write
from ..plan import RunConfig

FORMAT = "nextword-run-folder/1"


@dataclass(frozen=True)
class Prediction:
    """What a plan says of a run before it starts. Bytes, seconds of training, nats a token and bits a byte."""

    memory: float
    seconds: float
    tokens_per_second: float
    share_of_peak: float
    nats_per_token: float
    low: float  # of the loss, nats a token; `interval_is` says what interval
    high: float
    bits_per_byte: float
    formula_memory: float = 0.0  # without this machine's corrections
    law_bits: float = 0.0
    memory_parts: dict[str, float] = field(default_factory=dict)
    interval_is: str = ""


@dataclass(frozen=True)
class Measured:
    """What the run measured, in the same units."""

    memory: float
    seconds: float
    tokens: int
    tokens_per_second: float
    share_of_peak: float
    data_share: float  # of the seconds, making batches
    train_loss: float  # mean of the last 20 steps, nats a token
    nats_per_token: float  # on held-out text
    bits_per_byte: float
    threads: int
    peak: float = 0.0  # FLOP/s of one device that `share_of_peak` refers to
    peak_is: str = ""  # what was measured for it


@dataclass(frozen=True)
class RunRecord:
    """run.json."""

    run: RunConfig
    data: str  # folder of the prepared data
    fingerprint: str
    sources: tuple[str, ...]
    prediction: Prediction | None
    threads: int
    device: str
    peak: float  # FLOP/s of one device, in the products of the run's precision
    options: dict[str, Any] = field(default_factory=dict)
    origin: str = ""  # the model that fine-tuning began from
    created: str = ""

    def write(self, folder: Path) -> None:
        """Write it to `folder`/run.json."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("run", "prediction")}
        values["created"] = self.created or time.strftime("%Y-%m-%dT%H:%M:%S")
        prediction = asdict(self.prediction) if self.prediction else None
        _write(folder / "run.json", {"format": FORMAT, **values, "prediction": prediction, "run": self.run.to_dict()})

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read `folder`/run.json. Raises UsageError where there is none or it is not whole."""
        data = _read(folder / "run.json", "a run's folder")
        if data.pop("format", None) != FORMAT:
            raise UsageError(f"{folder / 'run.json'}: not a run of nextword, or of another version")
        try:
            prediction = data.pop("prediction")
            data["sources"] = tuple(data["sources"])
            run = RunConfig.from_dict(data.pop("run"))
            return cls(run=run, prediction=Prediction(**prediction) if prediction else None, **data)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{folder / 'run.json'} is not whole: {error}") from None


def write_report(folder: Path, prediction: Prediction | None, measured: Measured) -> None:
    """Predicted and measured, side by side, as report.json."""
    data = {"predicted": asdict(prediction) if prediction else None, "measured": asdict(measured)}
    _write(folder / "report.json", data)


def read_report(folder: Path) -> Measured | None:
    """What the run measured, or None if it has not ended."""
    if not (folder / "report.json").exists():
        return None
    try:
        return Measured(**_read(folder / "report.json", "a report")["measured"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{folder / 'report.json'} is not whole: {error}") from None


def runs_under(root: Path) -> Iterator[Path]:
    """The run folders directly under `root`, oldest first."""
    found = [path.parent for path in root.glob("*/run.json")]
    yield from sorted(found, key=lambda folder: (folder / "run.json").stat().st_mtime)


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings in which two configurations differ, each as "name: old -> new"."""
    before, after = _flat(old.to_dict()), _flat(new.to_dict())
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _write(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(data, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path.parent} is not {what}: {path.name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data
