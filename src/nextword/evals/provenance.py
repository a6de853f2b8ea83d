"""Provenance of an evaluation: enough to reproduce it and compare it with others."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, native
from .task import Item, Task, row_digests, text_digest
from .template import Template

if TYPE_CHECKING:
    from .eval_run import EvalRun


@dataclass(frozen=True)
class ModelRecord:
    """One of the models. `file` is its file or folder name, without the path."""

    name: str
    file: str
    weights: str  # SHA-256; empty if unknown
    precision: str
    device: str
    chat_template: str | None  # the model's, whether or not it is used


@dataclass(frozen=True)
class TaskRecord:
    """The task. The hashes are of the ordered rows' hashes."""

    name: str
    source: str  # name of the file
    output: str
    rows: int  # scored
    rows_hash: str
    pool: int  # rows to draw shots from
    pool_hash: str
    scorers: tuple[Mapping[str, Any], ...]
    generation: Mapping[str, Any] | None  # settings, if answers are generated


@dataclass(frozen=True)
class TemplateRecord:
    """How rows become prompts: the fields of a `PromptFormat`."""

    name: str
    digest: str  # a hash of everything that affects prompts
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class ShotsRecord:
    """The shots of one seed in one permutation, in prompt order: splits and row numbers from 0."""

    template: str
    shots: int
    variant: str
    fewshot_seed: int
    permutation: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """The provenance of an evaluation. `design` and `scoring` have the fields of `Design` and `ScoringConfig`."""

    date: str  # UTC, ISO 8601
    version: str  # of nextword
    command: str | None  # as typed, without --name, which is taken; None from Python
    design: Mapping[str, Any]
    scoring: Mapping[str, Any]
    task: TaskRecord
    templates: tuple[TemplateRecord, ...]
    models: tuple[ModelRecord, ...]
    shots: tuple[ShotsRecord, ...]  # empty if each item has its own shots
    machine: Mapping[str, Any]


def provenance(run: EvalRun, command: str | None = None) -> Provenance:
    """The provenance of an evaluation; `command` is the command line, if any."""
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        command=command,
        design=_plain(run.design),
        scoring=_plain(run.config),
        task=_task(run.task, run.items),
        templates=tuple(_template(name, task) for name, task in run.tasks.items()),
        models=tuple(runner.record() for runner in run.runners),
        shots=_shots(run),
        machine=_machine(),
    )


def _task(task: Task, items: Sequence[Item]) -> TaskRecord:
    return TaskRecord(
        task.name, Path(task.source).name, task.output, len(items), _rows_hash(items), len(task.fewshot_pool),
        _rows_hash(task.fewshot_pool), tuple(map(_plain, task.scorers)),
        asdict(task.generation) if task.output == "generate_until" else None,
    )  # fmt: skip


def _rows_hash(items: Sequence[Item]) -> str:
    own = row_digests([item.values for item in items])  # for a task built in Python
    return text_digest(" ".join(item.digest or digest for item, digest in zip(items, own, strict=True)))


def _template(name: str, task: Task) -> TemplateRecord:
    chat = {} if task.chat is None else {"chat": _plain(task.chat)}
    return TemplateRecord(name, prompt_digest(task), _plain(task.format) | chat)


def prompt_digest(task: Task) -> str:
    """A hash of everything in a task that affects its prompts, except rows and shots."""
    return text_digest(task.format.key + repr(task.chat))


def _plain(value: Any) -> Any:
    """Dataclasses as plain data for JSON; a template as its text."""
    if isinstance(value, Template):
        return value.source
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _shots(run: EvalRun) -> tuple[ShotsRecord, ...]:
    trials = {question.trial.condition: question.trial for question in run.questions(0)}
    return tuple(
        ShotsRecord(
            condition.template, condition.shots, condition.variant, condition.fewshot_seed, condition.permutation,
            tuple(shot.label for shot in trial.shots[None]),
        )
        for condition, trial in trials.items() if trial.shots.get(None)
    )  # fmt: skip


def _machine() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # only if a model ran on it
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": native.threads(),
        "python": platform.python_version(),
        **({"torch": torch.__version__} if torch else {}),
    }


def _processor() -> str:
    """The processor's name: from a file on Linux, otherwise from Python."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
