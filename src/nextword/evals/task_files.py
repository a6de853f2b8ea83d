"""Reads task files (YAML), including the built-in tasks, into a `TaskSpec`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..base import UsageError, read_text
from ..base.errors import closest
from ..base.fields import Within, from_plain
from .rows import SUFFIXES
from .scorers import scorer_of
from .task import Generation, Scorer
from .template import JINJA_SUFFIXES, SEPARATOR, Jinja, text_of

TASKS = Path(__file__).parent / "tasks"
_MAX_BYTES = 1 << 20  # of a task file, and of a template


@dataclass(frozen=True)
class TaskFile:
    """The keys of a task file, documented in docs/eval.md."""

    data: str
    target: str
    template: str | None = None
    template_file: str | None = None
    fewshot_data: str | None = None
    choices: tuple[str | float, ...] | str | None = None
    shots: Annotated[int, Within(least=0)] = 0
    description: str = ""
    separator: str = SEPARATOR
    group: str | None = None
    generate: bool | dict[str, Any] = False
    scorers: str | dict[str, str] = field(default_factory=dict)
    summary: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskSpec:
    """The specification of a task, before its rows are read."""

    name: str
    source: Path  # the user's file
    data: Path
    fewshot_data: Path | None = None
    template: str | None = None
    target: str | None = None
    choices: tuple[str, ...] | str | None = None  # by the data's names, or a column's name; None: from the data
    shots: int = 0
    description: str = ""
    separator: str = SEPARATOR
    group: str | None = None
    generation: Generation | None = None
    scorers: tuple[Scorer, ...] = ()


def spec_of(name: str) -> TaskSpec:
    """The task of a table, a task file or a built-in task. Raises UsageError for an unknown name or a bad file."""
    path = Path(name)
    if path.suffix in SUFFIXES:
        return TaskSpec(path.stem, path, path)
    if path.suffix in (".yaml", ".yml"):
        return _read_task_file(path)
    tasks = builtin_tasks()
    if name not in tasks:
        raise UsageError(
            f"there is no task {name!r}.{closest(name, tasks)} A task is a .yaml file, a table ({', '.join(SUFFIXES)}),"
            f" or one of: {', '.join(tasks)}"
        )
    return _read_task_file(TASKS / f"{name}.yaml")


def builtin_tasks() -> dict[str, str]:
    """Each built-in task's name and a one-line description."""
    return {path.stem: _read_yaml(path)["summary"] for path in sorted(TASKS.glob("*.yaml"))}


def _read_task_file(path: Path) -> TaskSpec:
    given = _read_yaml(path)
    if {"dataset_path", "doc_to_text", "output_type"} & set(given):
        raise UsageError(f"{path}: this is a task of lm-evaluation-harness. Use --lm-eval")
    try:
        keys = from_plain(TaskFile, given)
        if (keys.template is None) == (keys.template_file is None):
            raise UsageError("it needs either template or template_file")
        return TaskSpec(
            path.stem, path, path.parent / keys.data,
            None if keys.fewshot_data is None else path.parent / keys.fewshot_data,
            keys.template or read_template_file(path.parent / str(keys.template_file)), keys.target,
            tuple(map(text_of, keys.choices)) if isinstance(keys.choices, tuple) else keys.choices,
            keys.shots, keys.description, keys.separator, keys.group, _generation(keys.generate),
            _scorers(keys.scorers),
        )  # fmt: skip
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Do not expand merge keys (<<), a few of which can expand to any size; they are rejected later."""

    try:
        given = yaml.load(read_text(path, _MAX_BYTES), Loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UsageError(f"{path}: a task file must be a mapping with keys such as template")
    return given


def read_template_file(path: Path) -> str:
    """The source of a template; *.jinja files are Jinja. Raises UsageError for a file that cannot be read."""
    try:
        source = read_text(path, _MAX_BYTES).removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"template {str(path)!r} is neither a readable file ({error}) nor text with placeholders such as {{input}}"
        ) from None
    return Jinja(source) if path.suffix in JINJA_SUFFIXES else source


def _generation(given: bool | dict[str, Any]) -> Generation | None:
    if isinstance(given, bool):
        return Generation() if given else None
    until = given.get("until", Generation.until)
    return from_plain(Generation, given | {"until": [until] if isinstance(until, str) else until}, "generate.")


def _scorers(given: str | dict[str, str]) -> tuple[Scorer, ...]:
    if isinstance(given, str):
        return (scorer_of(given),)
    return tuple(scorer_of(text, name) for name, text in given.items())
