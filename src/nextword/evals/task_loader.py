"""Loads tasks: a table with a template, a task file (YAML), or a built-in task.

All become a `TaskSpec`: a table's comes from options, a task file's from its keys, overridden by options.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..base import UsageError
from ..base.errors import closest
from .checks import valid_items, warnings_of
from .rows import Rows, read_rows
from .scorers import check_golds, scorer_of
from .task import Generation, Item, PromptFormat, Row, Task, is_index, row_digests
from .task_files import TaskSpec, read_template_file, spec_of
from .template import ANSWER, Jinja, Template, text_of

MAX_LABELS = 26  # most distinct answers to be treated as labels
_ANSWER_COLUMNS = (ANSWER, "label", "answer", "target", "class", "sentiment")
_HELD_BACK = 200  # most rows reserved for shots without a file of shots


@dataclass(frozen=True)
class TaskOptions:
    """The user's overrides of a task file; None: no override.

    Raises UsageError for options that exclude each other.
    """

    target: str | None = None  # column of the correct answer; None: the usual one of a table
    labels: tuple[str, ...] = ()  # "raw=word" or "raw"; (): from the data
    generate: bool = False  # answers are generated
    max_tokens: int | None = None  # of a generated answer
    group: str | None = None  # column by which items are clustered
    separator: str | None = None
    description: str | None = None
    shots_from: Path | None = None
    skip_invalid: bool = False
    seed: int = 0
    hold_back: bool | None = True  # whether to reserve rows for shots without a file of them; None: if it has shots

    def __post_init__(self) -> None:
        if self.labels and self.generate:
            raise UsageError("--labels names choices, and --generate has none. Use one of them")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}; it must be a whole number of at least 1")


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
            name, source = Path(text).stem, read_template_file(Path(text))
        if name in templates:
            raise UsageError(f"two templates have the name {name!r}; rename a file")
        templates[name] = source
    return templates


def open_task(
    name: str, templates: Mapping[str, str] | None = None, options: TaskOptions | None = None
) -> dict[str, Task]:
    """The task with each of `templates`, by name, or with its own template under its own name.

    Several templates are all scored on the rows that all of them can use. Raises UsageError for an unknown name and for
    errors in the task, its rows or the options.
    """
    spec, options = spec_of(name), options or TaskOptions()
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


def check_column(name: str | None, columns: Sequence[str], path: Path, purpose: str = "") -> None:
    """Raise UsageError if the data of `path` lacks a column."""
    if name is not None and name not in columns:
        raise UsageError(
            f"{path}: there is no column {name!r}{purpose}.{closest(name, columns)} Columns: {', '.join(columns)}"
        )


def load_task(spec: TaskSpec, options: TaskOptions) -> Task:
    """Read the rows of a task. Shots come from its file of shots, or from reserved rows, which are not scored.

    Raises UsageError for invalid rows, a missing column, an unknown label, or shots from the scored file.
    """
    spec = _overridden(spec, options)
    data = read_rows(spec.data, options.skip_invalid)
    lacking = next((row for row in data.rows if spec.group not in row), data.rows[0])
    check_column(spec.group, list(lacking), spec.data, " to group by")
    shots = None if spec.fewshot_data is None else _shot_rows(spec.fewshot_data, spec.data, options.skip_invalid)
    format = _format(spec, options, data, shots)
    items = _items("test", data.rows, spec.group)
    pool = () if shots is None else _items("shots", shots.rows, spec.group)
    hold_back = spec.shots > 0 if options.hold_back is None else options.hold_back
    kept = _reserved(items, options.seed) if shots is None and hold_back else set()
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
        raise UsageError("--max-tokens: this task does not generate answers. Add --generate, or leave it out")
    return replace(generation, max_tokens=options.max_tokens)


def _shot_rows(path: Path, scored: Path, skip_invalid: bool) -> Rows:
    if path.resolve() == scored.resolve():
        raise UsageError(f"the shots come from {path}, the scored file: items would be among their own shots")
    return read_rows(path, skip_invalid)


def _items(split: str, rows: Sequence[Row], group: str | None) -> tuple[Item, ...]:
    """Rows as items, with groups from the group's column."""
    return tuple(
        Item(split, index, row, text_of(row[group]) if group is not None and group in row else None, digest)
        for index, (row, digest) in enumerate(zip(rows, row_digests(rows), strict=True))
    )


def _reserved(items: Sequence[Item], seed: int) -> set[tuple[str, int]]:
    """A random fifth of the rows (at most 200), by `seed`, to take shots from."""
    count = min(_HELD_BACK, len(items) // 5)
    return {items[index].row_id for index in random.Random(f"pool {seed}").sample(range(len(items)), count)}


def _format(spec: TaskSpec, options: TaskOptions, data: Rows, shots: Rows | None) -> PromptFormat:
    assert spec.template is not None
    target = spec.target or _answer_column(spec, data)
    check_column(target, data.columns, spec.data)
    template = Template.parse(spec.template, target)
    _check_columns(template, data, target, spec.data)
    if shots is not None and spec.fewshot_data is not None:
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
    """The choices of a row; none for an invalid row, which is reported later."""
    try:
        return format.choice_names(row)
    except UsageError:
        return ()


def _answer_column(spec: TaskSpec, data: Rows) -> str:
    """The usual name of an answer column, unless it is a placeholder in the question."""
    there = [name for name in _ANSWER_COLUMNS if name in data.columns]
    gaps: tuple[str, ...] = ()
    if f"{{{ANSWER}}}" in (spec.template or "") and not isinstance(spec.template, Jinja):
        gaps = Template.parse(spec.template or "", there[0] if there else ANSWER).columns
    for name in there:
        if name not in gaps[: gaps.index(ANSWER) if gaps else 0]:
            return name
    raise UsageError(
        f"{spec.data}: the answer's column is not known. Name it with --target. Columns: {', '.join(data.columns)}"
    )


def _check_columns(template: Template, rows: Rows, target: str, path: Path) -> None:
    """Raise UsageError if the data lacks a column used by the template."""
    for name in dict.fromkeys((*template.columns, target)):
        if name != ANSWER or target == ANSWER:
            check_column(name, rows.columns, path, ", which the template uses")


def _with_labels(format: PromptFormat, options: TaskOptions, rows: Sequence[Row], spec: TaskSpec) -> PromptFormat:
    """The format with the data's labels; answers are generated if there are too many."""
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
    """The format with other words for a task's choices. Raises UsageError if choices differ between items."""
    names = format.choice_names(rows[0])
    if format.generates:
        raise UsageError(f"--labels: {spec.name} generates answers and has no choices")
    if any(format.choice_names(row) != names for row in rows):
        raise UsageError(f"{spec.name}: its choices differ from item to item, and --labels names one set of choices")
    words = words_of(options.labels, names, f"the choices of {spec.name}")
    if unnamed := [name for name in names if name not in words]:
        raise UsageError(f"--labels does not name {unnamed[0]!r}, a choice of {spec.name}; add it")
    return replace(format, words=words)


def labels_of(text: str) -> tuple[str, ...]:
    """Labels separated by commas; one that contains a comma is in double quotes: '"good, fine"=good,bad'.

    Raises UsageError for a malformed text.
    """
    try:
        return tuple(next(csv.reader([text], skipinitialspace=True), ()))
    except csv.Error as error:
        raise UsageError(
            f"--labels cannot be read ({error}). Write it as A,B, with labels that contain commas quoted"
        ) from None


def typed_label(label: str) -> str:
    """A label in the syntax of `labels_of`."""
    return '"{}"'.format(label.replace('"', '""')) if set(label) & set(',"\n') or label != label.strip() else label


def words_of(labels: Sequence[str], names: Sequence[str], where: str) -> dict[str, str]:
    """Each label's word in prompts, from "raw=word", or "raw" to keep its name.

    Raises UsageError for a label that is not in `names` (those of `where`), and for duplicate words.
    """
    pairs = [(raw, word or raw) for raw, _, word in (label.partition("=") for label in labels)]
    for raw, _ in pairs:
        if raw not in names:
            raise UsageError(
                f"--labels: {raw!r} does not occur in {where}, which has {list(names)[:5]}."
                f"{closest(raw, names)} To rename one, write {typed_label(names[0] if names else 'raw')}=word"
            )
    if len({word for _, word in pairs}) < len(pairs) or len(dict(pairs)) < len(pairs):
        raise UsageError("--labels has the same word for two labels, or names one twice")
    return dict(pairs)
