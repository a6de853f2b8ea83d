"""Tasks by name: a table of rows with a template, a task file (YAML), or a built-in task, which is such a file.

All become the same `TaskSpec`: a table's comes from options, a task file's from its keys, over which options win.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..base import UsageError, read_text
from ..base.errors import closest
from .checks import valid_items, warnings_of
from .rows import SUFFIXES, Rows, read_rows
from .scorers import check_golds, scorer_of
from .task import Generation, Item, PromptFormat, Row, Scorer, Task, is_index, row_digests
from .template import ANSWER, JINJA_SUFFIXES, SEPARATOR, Jinja, Template, text_of

TASKS = Path(__file__).parent / "tasks"
MAX_LABELS = 26  # different answers that are still taken for labels
_ANSWER_COLUMNS = (ANSWER, "label", "answer", "target", "class", "sentiment")
_HELD_BACK = 200  # rows at most that are reserved for shots where no file of shots is given
_MAX_TASK_FILE = 1 << 20  # bytes
_KEYS: dict[str, tuple[type, ...]] = {
    "data": (str,), "fewshot_data": (str,), "template": (str,), "template_file": (str,), "target": (str,),
    "choices": (list, str), "shots": (int,), "description": (str,), "separator": (str,), "group": (str,),
    "generate": (bool, dict), "scorers": (str, dict), "summary": (str,), "metadata": (dict,),
}  # fmt: skip
_GENERATE_KEYS: dict[str, tuple[type, ...]] = {
    "until": (list, str), "max_tokens": (int,), "temperature": (int, float), "top_p": (int, float), "top_k": (int,),
}  # fmt: skip
_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping",
               bool: "true or false"}  # fmt: skip


@dataclass(frozen=True)
class TaskOptions:
    """What a user says about a task in place of what its file says; None leaves that.

    Raises UsageError for options that exclude each other.
    """

    target: str | None = None  # column of the right answer; of a table, None takes the usual one
    labels: tuple[str, ...] = ()  # "raw=word" or "raw"; () takes those of the data
    generate: bool = False  # the model writes its answer
    max_tokens: int | None = None  # of that
    group: str | None = None  # column of what is not independent
    separator: str | None = None
    description: str | None = None
    shots_from: Path | None = None
    skip_invalid: bool = False
    seed: int = 0
    hold_back: bool = True  # whether a task without a file of shots reserves rows for shots

    def __post_init__(self) -> None:
        if self.labels and self.generate:
            raise UsageError("--labels names choices, and --generate has none. Use one of them")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}; it must be a whole number of at least 1")


@dataclass(frozen=True)
class TaskSpec:
    """A task before its rows are read."""

    name: str
    source: Path  # the file that a user named
    data: Path
    fewshot_data: Path | None = None
    template: str | None = None
    target: str | None = None
    choices: tuple[str, ...] | str | None = None  # by the data's names, or a column's name; None: those of the data
    shots: int = 0
    description: str = ""
    separator: str = SEPARATOR
    group: str | None = None
    generation: Generation | None = None
    scorers: tuple[Scorer, ...] = ()


def read_templates(given: Sequence[str]) -> dict[str, str]:
    r"""Template files by their names, or template texts, in which \n is a newline; *.jinja files are Jinja.

    Raises UsageError for a file that cannot be read, and for two of one name.
    """
    templates: dict[str, str] = {}
    for text in given:
        if "{" in text:
            name = f"template {len(templates) + 1}" if len(given) > 1 else "template"
            source = text.replace("\\n", "\n")
        else:
            name, source = Path(text).stem, _template_file(Path(text))
        if name in templates:
            raise UsageError(f"two templates have the name {name!r}; rename a file")
        templates[name] = source
    return templates


def _template_file(path: Path) -> str:
    try:
        source = read_text(path, 1 << 20).removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"template {str(path)!r} is neither a readable file ({error}) nor a text with gaps such as {{input}}"
        ) from None
    return Jinja(source) if path.suffix in JINJA_SUFFIXES else source


def open_task(
    name: str, templates: Mapping[str, str] | None = None, options: TaskOptions | None = None
) -> dict[str, Task]:
    """The task under each of `templates` by its name, or once under its own name with its own template.

    With several templates all are scored on the rows that all of them can use. Raises UsageError for an unknown name,
    and for whatever is wrong with the task, its rows or the options.
    """
    spec, options = _spec(name), options or TaskOptions()
    if not templates:
        return {spec.name: load_task(spec, options)}
    tasks = {label: load_task(replace(spec, template=source), options) for label, source in templates.items()}
    common = set.intersection(*({item.row_id for item in (*task.items, *task.fewshot_pool)} for task in tasks.values()))
    return {
        label: replace(
            task,
            items=tuple(item for item in task.items if item.row_id in common),
            fewshot_pool=tuple(item for item in task.fewshot_pool if item.row_id in common),
        )
        for label, task in tasks.items()
    }


def _spec(name: str) -> TaskSpec:
    path = Path(name)
    if path.suffix in SUFFIXES:
        return TaskSpec(path.stem, path, path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        return read_task_file(path)
    if name not in builtin_tasks():
        raise UsageError(
            f"there is no task {name!r}.{closest(name, builtin_tasks())} A task is a .yaml file, a table ("
            f"{', '.join(SUFFIXES)}), or one of: {', '.join(builtin_tasks())}"
        )
    return read_task_file(TASKS / f"{name}.yaml")


def builtin_tasks() -> dict[str, str]:
    """Each built-in task's name and what it asks, in one line."""
    return {path.stem: _read_yaml(path)["summary"] for path in sorted(TASKS.glob("*.yaml"))}


def read_task_file(path: Path) -> TaskSpec:
    """Read a task file. Raises UsageError for an unknown key, or a value of the wrong type."""
    given = _read_yaml(path)
    _check_keys(given, _KEYS, f"{path}:")
    if "data" not in given:
        raise UsageError(f"{path}: it names no data. Add a line such as data: rows.jsonl")
    if ("template" in given) == ("template_file" in given):
        raise UsageError(f"{path}: it needs either template or template_file")
    if "target" not in given:
        raise UsageError(f"{path}: it names no target, the column of the right answer")
    template = given["template"] if "template" in given else _template_file(path.parent / given["template_file"])
    choices = given.get("choices")
    if given.get("shots", 0) < 0:
        raise UsageError(f"{path}: shots is {given['shots']}; it must be a whole number of at least 0")
    return TaskSpec(
        path.stem, path, path.parent / given["data"],
        path.parent / given["fewshot_data"] if "fewshot_data" in given else None,
        template, given["target"],
        tuple(_choice(choice, path) for choice in choices) if isinstance(choices, list) else choices,
        given.get("shots", 0), given.get("description", ""), given.get("separator", SEPARATOR), given.get("group"),
        _generation(given.get("generate", False), path), _scorers(given.get("scorers", {}), path),
    )  # fmt: skip


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Leave merge keys (<<) alone: a few of them unfold to any size. They are then refused."""

    try:
        given = yaml.load(read_text(path, _MAX_TASK_FILE), Loader)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UsageError(f"{path}: a task file is a mapping of keys such as template")
    return given


def _check_keys(given: Mapping[Any, Any], known: Mapping[str, tuple[type, ...]], where: str) -> None:
    harness = {"dataset_path", "doc_to_text", "output_type"} & set(given)
    for key, value in given.items():
        if key not in known:
            hint = closest(str(key), known) or f" Known: {', '.join(known)}"
            hint = " This is a task of lm-evaluation-harness: use --lm-eval" if harness else hint
            raise UsageError(f"{where} the key {str(key)[:60]!r} is not known.{hint}")
        kinds = known[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            meant = " or ".join(_TYPE_NAMES[kind] for kind in kinds)
            raise UsageError(f"{where} {key} must be {meant}, not {_TYPE_NAMES.get(type(value), 'empty')}")


def _choice(choice: Any, path: Path) -> str:
    if not isinstance(choice, str | int | float):
        raise UsageError(f"{path}: choices is a list of texts")
    return text_of(choice)


def _generation(given: bool | dict[str, Any], path: Path) -> Generation | None:
    if isinstance(given, bool):
        return Generation() if given else None
    _check_keys(given, _GENERATE_KEYS, f"{path}: under generate,")
    until = given.get("until", Generation.until)
    generation = Generation(**{**given, "until": tuple(map(str, [until] if isinstance(until, str) else until))})
    if generation.max_tokens < 1:
        raise UsageError(f"{path}: max_tokens is {generation.max_tokens}; it must be a whole number of at least 1")
    return generation


def _scorers(given: str | dict[Any, Any], path: Path) -> tuple[Scorer, ...]:
    if isinstance(given, str):
        return (scorer_of(given),)
    if not all(isinstance(text, str) for text in given.values()):
        raise UsageError(
            f"{path}: scorers is a scorer's name, or a mapping of names to such as number or regex:PATTERN"
        )
    return tuple(scorer_of(text, str(name)) for name, text in given.items())


def load_task(spec: TaskSpec, options: TaskOptions) -> Task:
    """Read the rows of a task. Shots come from its file of shots, or from rows that are then not scored.

    Raises UsageError for invalid rows, a missing column, an unknown label, or shots from the scored file.
    """
    spec = _overridden(spec, options)
    data = read_rows(spec.data, options.skip_invalid)
    _check_group(spec.group, data.rows, spec.data)
    shots = None if spec.fewshot_data is None else _shot_rows(spec.fewshot_data, spec.data, options.skip_invalid)
    format = _format(spec, options, data, shots)
    items = _items("test", data.rows, spec.group)
    pool = () if shots is None else _items("shots", shots.rows, spec.group)
    kept = _reserved(items, options.seed) if shots is None and options.hold_back else set()
    items, notes = valid_items(format, items, str(spec.data), options.skip_invalid)
    notes, warnings = (*data.broken, *notes), list[str]()
    if shots is not None:
        pool, skipped = valid_items(format, pool, str(spec.fewshot_data), options.skip_invalid, shots=True)
        notes = (*notes, *shots.broken, *skipped)
    elif pool := tuple(item for item in items if item.row_id in kept):
        warnings = [
            f"{len(pool)} of {len(items)} rows are reserved for shots and not scored; use --shots-from to score all"
        ]
        items = tuple(item for item in items if item.row_id not in kept)
    task = Task(
        spec.name, items, pool, format, (spec.scorers or (scorer_of("exact"),)) if format.generates else (),
        _length(spec.generation or Generation(), options, format), spec.shots, str(spec.source), notes,
    )  # fmt: skip
    check_golds(task)
    return replace(task, warnings=(*warnings, *warnings_of(task)))


def _overridden(spec: TaskSpec, options: TaskOptions) -> TaskSpec:
    if spec.template is None:
        raise UsageError(
            f"{spec.source}: a table needs a template, such as --template 'Review: {{text}}\\nSentiment: {{label}}',"
            " with column names in braces"
        )
    generation = spec.generation or (Generation() if options.generate else None)
    return replace(
        spec,
        fewshot_data=options.shots_from or spec.fewshot_data,
        target=options.target or spec.target,
        group=options.group or spec.group,
        separator=spec.separator if options.separator is None else options.separator,
        description=spec.description if options.description is None else options.description,
        generation=generation,
    )


def _length(generation: Generation, options: TaskOptions, format: PromptFormat) -> Generation:
    if options.max_tokens is None:
        return generation
    if not format.generates:
        raise UsageError("--max-tokens: the model writes no answer here. Add --generate, or leave it out")
    return replace(generation, max_tokens=options.max_tokens)


def _shot_rows(path: Path, scored: Path, skip_invalid: bool) -> Rows:
    if path.resolve() == scored.resolve():
        raise UsageError(f"--shots-from is the scored file {path}: items would be among their own shots")
    return read_rows(path, skip_invalid)


def _items(split: str, rows: Sequence[Row], group: str | None) -> tuple[Item, ...]:
    """Rows as items; those with the same value in the group's column are not independent."""
    return tuple(
        Item(split, index, row, text_of(row[group]) if group is not None and group in row else None, digest)
        for index, (row, digest) in enumerate(zip(rows, row_digests(rows), strict=True))
    )


def _check_group(group: str | None, rows: Sequence[Row], path: Path) -> None:
    lacking = next((row for row in rows if group is not None and group not in row), None)
    if lacking is not None:
        raise UsageError(
            f"{path}: there is no column {group!r} to group by.{closest(str(group), lacking)} Columns:"
            f" {', '.join(lacking)}"
        )


def _reserved(items: Sequence[Item], seed: int) -> set[tuple[str, int]]:
    """A fifth of the rows (200 at the most), drawn by `seed`, to take shots from."""
    count = min(_HELD_BACK, len(items) // 5)
    return {items[index].row_id for index in random.Random(f"pool {seed}").sample(range(len(items)), count)}


def _format(spec: TaskSpec, options: TaskOptions, data: Rows, shots: Rows | None) -> PromptFormat:
    assert spec.template is not None
    target = spec.target or _answer_column(spec, data)
    if target not in data.columns:
        raise UsageError(
            f"{spec.data}: there is no column {target!r}.{closest(target, data.columns)} Columns:"
            f" {', '.join(data.columns)}"
        )
    template = Template.parse(spec.template, target)
    _check_columns(template, data, target, spec.data)
    if shots is not None:
        _check_columns(template, shots, target, spec.fewshot_data)
    format = PromptFormat(
        template, target, (), {}, spec.separator, spec.description, generates=spec.generation is not None
    )
    rows = [*data.rows, *(shots.rows if shots else ())]
    if spec.choices is None:
        return _with_labels(format, options, rows, spec)
    format = replace(format, choices_from=spec.choices)
    named = [(text_of(row.get(target)), _choice_names(format, row)) for row in rows]
    indexed = sum(is_index(text, names) for text, names in named) > sum(text in names for text, names in named)
    format = replace(format, indexed=indexed)
    return _renamed(format, options, rows, spec) if options.labels else format


def _choice_names(format: PromptFormat, row: Row) -> tuple[str, ...]:
    """The choices of a row; none for one that is told as invalid later."""
    try:
        return format.choice_names(row)
    except UsageError:
        return ()


def _answer_column(spec: TaskSpec, data: Rows) -> str:
    """The usual name of an answer's column, if it is not a gap of the question."""
    there = [name for name in _ANSWER_COLUMNS if name in data.columns]
    gaps: tuple[str, ...] = ()
    if f"{{{ANSWER}}}" in (spec.template or "") and not isinstance(spec.template, Jinja):
        gaps = Template.parse(spec.template or "", there[0] if there else ANSWER).columns
    for name in there:
        if name not in gaps[: gaps.index(ANSWER) if gaps else 0]:
            return name
    raise UsageError(
        f"{spec.data}: the column with the answer is not known. Name it with --target. Columns:"
        f" {', '.join(data.columns)}"
    )


def _check_columns(template: Template, rows: Rows, target: str, path: Path | None) -> None:
    """Raise UsageError where the data lacks a column that the template asks for."""
    for name in dict.fromkeys((*template.columns, target)):
        if name not in rows.columns and not name == ANSWER != target:
            raise UsageError(
                f"{path}: the template asks for {{{name}}}.{closest(name, rows.columns)} Columns:"
                f" {', '.join(rows.columns)}"
            )


def _with_labels(format: PromptFormat, options: TaskOptions, rows: Sequence[Row], spec: TaskSpec) -> PromptFormat:
    """The labels that the data has; the model writes its answer where there are too many of them."""
    if format.generates:
        return format
    values = (row.get(format.target) for row in rows)
    labels = dict.fromkeys(text_of(value) for value in values if value is not None and text_of(value).strip())
    if options.labels:
        words = words_of(options.labels, list(labels), f"column {format.target!r} of {spec.data}")
        return replace(format, choices_from=tuple(words), words=words)
    if len(labels) > MAX_LABELS:
        return replace(format, generates=True)
    if len(labels) < 2:
        raise UsageError(
            f"{spec.data}: every row has the answer {next(iter(labels), '')!r}; there is nothing to choose between"
        )
    return replace(format, choices_from=tuple(sorted(labels)))


def _renamed(format: PromptFormat, options: TaskOptions, rows: Sequence[Row], spec: TaskSpec) -> PromptFormat:
    """The format with other words for a task's choices. Raises UsageError where they are not one set."""
    names = format.choice_names(rows[0])
    if format.generates:
        raise UsageError(f"--labels: in {spec.name} the model writes its answer and has no choices")
    if any(format.choice_names(row) != names for row in rows):
        raise UsageError(f"{spec.name}: its choices differ from item to item, and --labels names one set of choices")
    words = words_of(options.labels, names, f"the choices of {spec.name}")
    if unnamed := [name for name in names if name not in words]:
        raise UsageError(f"--labels does not name {unnamed[0]!r}, a choice of {spec.name}; add it as it is")
    return replace(format, words=words)


def labels_of(text: str) -> tuple[str, ...]:
    """Labels separated by commas; one with a comma of its own is in double quotes: '"good, fine"=good,bad'.

    Raises UsageError for text that is not one line of that.
    """
    try:
        return tuple(next(csv.reader([text], skipinitialspace=True), ()))
    except csv.Error as error:
        raise UsageError(
            f"--labels cannot be read ({error}). Write it as A,B, with a comma of a label's own quoted"
        ) from None


def _typed(label: str) -> str:
    """A label as `labels_of` reads it."""
    return '"{}"'.format(label.replace('"', '""')) if set(label) & set(',"\n') or label != label.strip() else label


def words_of(labels: Sequence[str], names: Sequence[str], where: str) -> dict[str, str]:
    """What each label is called, from "raw=word", or "raw" for one that keeps its name.

    Raises UsageError for a label that is not among `names` (those of `where`), and for two of one name.
    """
    pairs = [(raw, word or raw) for raw, _, word in (label.partition("=") for label in labels)]
    for raw, _ in pairs:
        if raw not in names:
            raise UsageError(
                f"--labels: {raw!r} does not occur in {where}, which has {list(names)[:5]}."
                f"{closest(raw, names)} To rename one, write {_typed(names[0] if names else 'raw')}=word"
            )
    if len({word for _, word in pairs}) < len(pairs) or len(dict(pairs)) < len(pairs):
        raise UsageError("--labels has the same word for two labels, or names one twice")
    return dict(pairs)
