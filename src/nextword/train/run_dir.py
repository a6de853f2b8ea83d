"""A run's folder: configuration, record, metrics, checkpoints, report and model.

config.toml       the resolved configuration: `nextword train DATA --config FOLDER/config.toml` trains it again
run.json          data, prediction, changes on resuming
metrics.jsonl     a line per step, evaluation and sample
checkpoints/      step-…: to resume from
report.json       predicted and measured, at the end
curve.svg         the loss curve (needs nextword[plot])
config.json, model.safetensors, tokenizer.json   the model in Hugging Face format
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ..base import RunError, UsageError, atomic_write, read_json, try_lock
from ..base.fields import Within, from_plain
from ..plan import RunConfig
from .changes import NO_CHANGE, Change, Settings
from .deadline import End
from .metrics import METRICS

FORMAT = "nextword-run/3"
CONFIG, RECORD = "config.toml", "run.json"
_WRITTEN = ("checkpoints", METRICS, "report.json", "curve.svg")  # by a run, besides its model
Figure = Annotated[float, Within(finite=False)]  # NaN: unknown


@dataclass(frozen=True)
class Prediction:
    """Prediction of a run before it starts. Bytes, seconds of training, nats per token and bits per byte.

    `memory_is` says what `memory` is: "probed", by steps of the run, or "formula", as `formula_memory`.
    """

    memory: Figure
    seconds: Figure
    tokens_per_second: Figure
    share_of_peak: Figure
    nats_per_token: Figure
    low: Figure  # of the loss, nats per token; `interval_is` describes the interval
    high: Figure
    bits_per_byte: Figure
    formula_memory: Figure = 0.0
    law_bits: Figure = 0.0
    law: str = ""  # that `law_bits` is by
    memory_parts: dict[str, Figure] = field(default_factory=dict)
    interval_is: str = ""
    memory_is: Literal["probed", "formula"] = "formula"
    peak: Figure = 0.0  # FLOP/s of one device in the run's dtype, the reference of `share_of_peak`


@dataclass(frozen=True)
class Measured:
    """What the run measured, in the same units."""

    memory: Figure
    seconds: Figure
    tokens: int
    tokens_per_second: Figure
    share_of_peak: Figure
    data_share: Figure  # share of the seconds, for making batches
    train_loss: Figure  # mean of the last 20 steps, nats per token
    nats_per_token: Figure  # on held-out text
    bits_per_byte: Figure
    threads: int
    error: Figure | None = None  # standard error of nats_per_token
    clusters: int = 0  # number of clusters behind it
    over: str = "documents"
    steps: int = 0  # completed steps
    wall_seconds: Figure = 0.0  # from the start to the end of every session; `seconds` are those of steps
    requested_seconds: Figure = 0.0  # of wall time; 0: none
    ends: tuple[End, ...] = ()  # that the clock set
    nats_before: Figure | None = None  # on the same held-out text before the first step of fine-tuning
    peak: Figure = 0.0  # FLOP/s of one device, the reference of `share_of_peak`
    peak_is: str = ""  # how it was measured
    memory_is: str = ""  # what it is, if not the run's own


@dataclass(frozen=True)
class RunRecord:
    """config.toml and run.json."""

    config: RunConfig
    data: str  # folder of the prepared data
    fingerprint: str
    sources: tuple[str, ...] = ()
    prediction: Prediction | None = None
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S"))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # of the run, however often it is resumed
    changes: tuple[Change, ...] = ()  # in order

    @property
    def settings(self) -> Settings:
        """The settings the run was started with."""
        train = self.config.train
        return Settings(train.on_loss_spike, self.config.run.threads or None, train.steps)

    @property
    def current(self) -> RunConfig:
        """The configuration with the current number of steps."""
        return self.config.with_train(steps=self.settings.after(self.changes).steps)

    @property
    def expected(self) -> Prediction | None:
        """The prediction, unless the run's length has changed."""
        return self.prediction if self.current == self.config else None

    def ended(self, measured: Measured | None, change: Change = NO_CHANGE) -> bool:
        """Whether the report's `measured` covers all steps, also after `change`."""
        steps = change.steps or self.current.train.steps
        if measured is None:
            return False
        return measured.steps >= steps or (bool(measured.ends) and steps == self.config.train.steps)

    def write(self, folder: Path) -> None:
        """Write config.toml and, last, run.json into `folder`."""
        names = [field.name for field in fields(self) if field.name not in ("config", "changes")]
        values = {name: value for name, value in asdict(self).items() if name in names}
        self.config.write(folder / CONFIG)
        changes = [change.to_dict() for change in self.changes]
        _write(folder / RECORD, {"format": FORMAT, **values, "changes": changes})

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a run's record. Raises UsageError if there is no run, a file is damaged, or a value is invalid."""
        path = folder / RECORD
        data = read_json(path, f"{folder} is not a run folder: it has no {RECORD}")
        if (version := data.pop("format", None)) != FORMAT:
            raise UsageError(
                f"{path}: the run is from another version of nextword ({version!r}, not {FORMAT!r}); use that version"
                " to resume or show it. Its model can be opened. To train it again: nextword train"
            )
        config = RunConfig.read(folder / CONFIG)
        try:
            return from_plain(cls, {**data, "config": config})
        except UsageError as error:
            raise UsageError(f"{path}: {error}. Restore the original file") from None


def write_report(folder: Path, prediction: Prediction | None, measured: Measured) -> None:
    """Predicted and measured, side by side, as report.json."""
    data = {"predicted": asdict(prediction) if prediction else None, "measured": asdict(measured)}
    _write(folder / "report.json", data)


def read_report(folder: Path) -> Measured | None:
    """The run's measurements, or None if it is not finished."""
    path = folder / "report.json"
    if not path.exists():
        return None
    try:
        return from_plain(Measured, read_json(path).get("measured"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def runs_under(root: Path) -> Iterator[Path]:
    """The run folders directly under `root`, oldest first."""
    folders = [path.parent for path in root.glob("*/run.json")]
    yield from sorted(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)


@contextmanager
def locked_run(folder: Path, doing: str = "training this run") -> Iterator[None]:
    """Lock `folder` until the block or this process ends.

    Raises UsageError if another process holds it; the message says what that one is `doing`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor, 0.1):  # `is_locked` holds it for a moment
            raise UsageError(f"{folder}: another process is {doing}; wait until it ends, or stop it")
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process is training there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove partial files of killed processes from a run's folder; call only while it is locked."""
    for path in [*folder.glob(".*.part"), folder / ".model", *(folder / "checkpoints").glob(".step-*.part")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path | None:
    """Move a run's files, except its model, to `folder`/before-restart; None if there are none."""
    written = [folder / name for name in _WRITTEN if (folder / name).exists()]
    if not written:
        return None
    aside = free_name(folder / "before-restart")
    aside.mkdir()
    for path in written:
        os.replace(path, aside / path.name)
    return aside


def free_name(path: Path) -> Path:
    """`path`, with -2, -3, ... appended if it exists."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def resume_command(folder: Path, options: str = "") -> str:
    """The command line that resumes a run, with as many processes as train it now."""
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = f"torchrun --nnodes {world // here} --nproc-per-node {here} -m " if world > here else ""
    processes = f" --processes {world}" if world == here > 1 else ""
    return f"{nodes}nextword runs resume {shlex.quote(str(folder))}{processes}{options and ' ' + options}"


@contextmanager
def writing(path: Path, then: str = "try again") -> Iterator[None]:
    """Convert a failure to write a run's file to a one-line RunError, ending in what to do `then`."""
    try:
        yield
    except Exception as raised:
        error = raised.__cause__ if isinstance(raised, RunError) else raised  # `write_model` has its own message
        # compared by name, since a plain install has no safetensors
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOENT:
            raise RunError(
                f"{path} cannot be written: its folder was moved or deleted. If it was moved, continue the run there:"
                " nextword runs resume FOLDER"
            ) from error
        reason = os.strerror(number).lower() if number else str(error)
        fix = "Make it writable" if number in (errno.EACCES, errno.EPERM, errno.EROFS) else "Free some space"
        raise RunError(f"{path}: {reason}. {fix}, then {then}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], added: bool = True) -> list[str]:
    """The differences of two configurations, as "name: old -> new"; without `added`, only `old`'s settings."""
    before, after = _flat(old), _flat(new)
    names = [name for name in (before | after if added else before) if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in data.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _write(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(data, file, indent=2, ensure_ascii=False)
        file.write("\n")
