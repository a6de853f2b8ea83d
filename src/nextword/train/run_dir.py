"""A run's folder: what was planned, what happened, and the model.

run.json          configuration, data, prediction, what was changed on resuming
metrics.jsonl     a line a step, a line an evaluation
checkpoints/      step-…: what the run goes on from
report.json       predicted and measured, when it has ended
curve.svg         the loss, drawn (needs nextword[plot])
config.json, model.safetensors, tokenizer.json   the model as other programs open it
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError

from ..base import RunError, UsageError, atomic_write, read_regular, try_lock
from ..base.fields import Within, from_plain
from ..plan import RunConfig
from ..spec import Positive
from .changes import NOTHING, Change, Settings

FORMAT = "nextword-run-folder/1"
_MOST_BYTES = 16_000_000  # of a JSON file in a run's folder
_MADE = ("checkpoints", "metrics.jsonl", "report.json", "curve.svg")  # by a run, beside its model
Figure = Annotated[float, Within(finite=False)]  # NaN: nobody knows


@dataclass(frozen=True)
class Prediction:
    """What a plan says of a run before it starts. Bytes, seconds of training, nats a token and bits a byte."""

    memory: Figure
    seconds: Figure
    tokens_per_second: Figure
    share_of_peak: Figure
    nats_per_token: Figure
    low: Figure  # of the loss, nats a token; `interval_is` says what interval
    high: Figure
    bits_per_byte: Figure
    formula_memory: Figure = 0.0  # without this machine's corrections
    law_bits: Figure = 0.0
    memory_parts: dict[str, Figure] = field(default_factory=dict)
    interval_is: str = ""


@dataclass(frozen=True)
class Measured:
    """What the run measured, in the same units."""

    memory: Figure
    seconds: Figure
    tokens: int
    tokens_per_second: Figure
    share_of_peak: Figure
    data_share: Figure  # of the seconds, making batches
    train_loss: Figure  # mean of the last 20 steps, nats a token
    nats_per_token: Figure  # on held-out text
    bits_per_byte: Figure
    threads: int
    error: Figure | None = None  # standard error of nats_per_token
    clusters: int = 0  # that it is over
    over: str = "documents"
    steps: int = 0  # that were done; 0 in a report of an older version
    shortened: bool = False  # to end in time
    nats_before: Figure | None = None  # on the same held-out text before the first step of fine-tuning
    peak: Figure = 0.0  # FLOP/s of one device that `share_of_peak` refers to
    peak_is: str = ""  # what was measured for it


@dataclass(frozen=True)
class RunRecord:
    """run.json."""

    run: RunConfig
    data: str  # folder of the prepared data
    fingerprint: str
    sources: tuple[str, ...]
    prediction: Prediction | None
    threads: Annotated[int, Within(least=1)]
    device: str
    peak: Positive  # FLOP/s of one device, in the products of the run's precision
    options: dict[str, Any] = field(default_factory=dict)
    origin: str = ""  # the model that fine-tuning began from
    created: str = ""
    preparation: dict[str, Any] = field(default_factory=dict)  # how the sources were made tokens
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # of the run, however often it is resumed
    changes: tuple[Change, ...] = ()  # in the order in which they were made

    @property
    def settings(self) -> Settings:
        """What the run was begun with."""
        return Settings(self.options.get("guard", "stop"), self.threads, self.run.steps)

    @property
    def current(self) -> RunConfig:
        """The configuration with the number of steps that the run is to do now."""
        run, steps = self.run, self.settings.after(self.changes).steps
        return run if steps == run.steps else replace(run, steps=steps, tokens=steps * run.batch * run.context)

    @property
    def expected(self) -> Prediction | None:
        """The prediction, where the run still has the length that it is of."""
        return self.prediction if self.current.steps == self.run.steps else None

    def ended(self, measured: Measured | None, change: Change = NOTHING) -> bool:
        """Whether `measured`, of the run's report, is of all its steps, and would be with `change`."""
        steps = change.steps or self.current.steps
        if measured is None:
            return False
        return (measured.steps or self.run.steps) >= steps or (measured.shortened and steps == self.run.steps)

    def write(self, folder: Path) -> None:
        """Write it to `folder`/run.json."""
        apart = ("run", "prediction", "changes")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        values["created"] = self.created or time.strftime("%Y-%m-%dT%H:%M:%S")
        values["changes"] = [change.to_dict() for change in self.changes]
        prediction = asdict(self.prediction) if self.prediction else None
        _write(folder / "run.json", {"format": FORMAT, **values, "prediction": prediction, "run": self.run.to_dict()})

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read `folder`/run.json. Raises UsageError where there is none, it is not whole, or a value is none."""
        path = folder / "run.json"
        data = _read(path, "a run's folder")
        if data.pop("format", None) != FORMAT:
            raise UsageError(f"{path}: not a run of nextword, or of another version")
        try:
            run = data.get("run")
            data["run"] = RunConfig.from_dict(run if isinstance(run, dict) else {})
            if data.get("prediction") is not None:
                data["prediction"] = from_plain(Prediction, data["prediction"], "prediction.")
            if isinstance(data.get("changes"), list):
                data["changes"] = [from_plain(Change, each, "changes.") for each in data["changes"]]
            return from_plain(cls, {"id": "", **data})
        except UsageError as error:
            raise UsageError(f"{path}: {error}. Put back what was there") from None


def write_report(folder: Path, prediction: Prediction | None, measured: Measured) -> None:
    """Predicted and measured, side by side, as report.json."""
    data = {"predicted": asdict(prediction) if prediction else None, "measured": asdict(measured)}
    _write(folder / "report.json", data)


def read_report(folder: Path) -> Measured | None:
    """What the run measured, or None if it has not ended."""
    path = folder / "report.json"
    if not path.exists():
        return None
    try:
        return from_plain(Measured, _read(path, "a report").get("measured"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def runs_under(root: Path) -> Iterator[Path]:
    """The run folders directly under `root`, oldest first."""
    found = [path.parent for path in root.glob("*/run.json")]
    yield from sorted(found, key=lambda folder: (folder / "run.json").stat().st_mtime)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder` from every other process that would train there, until the block or this process ends.

    Raises UsageError if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise UsageError(f"{folder}: another process is training this run; wait until it ends, or stop it")
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process trains there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a run's folder. Only while it is `held`."""
    for part in [*folder.glob(".*.part"), folder / ".model", *(folder / "checkpoints").glob(".step-*.part")]:
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path | None:
    """Move what a run has made, but for its model, to `folder`/before-restart; None if there is nothing."""
    made = [folder / name for name in _MADE if (folder / name).exists()]
    if not made:
        return None
    place, number = folder / "before-restart", 2
    while place.exists():
        place, number = folder / f"before-restart-{number}", number + 1
    place.mkdir()
    for path in made:
        os.replace(path, place / path.name)
    return place


def resume_command(folder: Path, options: str = "") -> str:
    """The command line that goes on with a run, with as many processes as torchrun has started here."""
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    program = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 2)} -m nextword" if many else "nextword"
    return f"{program} runs resume {shlex.quote(str(folder))}{options and ' ' + options}"


@contextmanager
def writing(path: Path, then: str = "try again") -> Iterator[None]:
    """Turns a file of a run that cannot be written into one line that says what to do `then`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        known = isinstance(error, OSError) and error.errno
        reason = os.strerror(error.errno).lower() if known else str(error)  # type: ignore[union-attr, arg-type]
        raise RunError(f"{path}: {reason}. Free some space, then {then}") from error


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Add one line of JSON to `path`, whole or not at all. What an interrupted write left at its end is cut off."""
    with path.open("ab+", buffering=0) as file:
        end = _whole_lines(file)
        try:
            line = memoryview(json.dumps(data).encode() + b"\n")
            while line:
                line = line[file.write(line) :]
        except BaseException:
            with suppress(OSError):
                file.truncate(end)
            raise


def _whole_lines(file: Any) -> int:
    """The length of an open file, less a last line without an end, which is removed."""
    end: int = file.seek(0, os.SEEK_END)
    if end == 0 or (file.seek(end - 1), file.read(1))[1] == b"\n":
        return end
    file.seek(0)
    whole = bytes(file.read()).rfind(b"\n") + 1
    file.truncate(whole)
    return whole


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings in which two configurations differ, each as "name: old -> new"."""
    return differences(old.to_dict(), new.to_dict())


def differences(old: dict[str, Any], new: dict[str, Any], added: bool = True) -> list[str]:
    """`difference` of plain data; without `added` only of what `old` has."""
    before, after = _flat(old), _flat(new)
    names = [name for name in (before | after if added else before) if before.get(name) != after.get(name)]
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
        data = json.loads(read_regular(path, _MOST_BYTES))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path.parent} is not {what}: {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data
