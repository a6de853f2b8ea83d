"""A task from a table of rows and a template with gaps."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from .checking import checked, warnings_of
from .reading import Rows, read_rows
from .task import Filter, Generation, Item, Metric, Row, Task, row_digests
from .template import ANSWER, SEPARATOR, Template

MOST_LABELS = 26  # different answers that are still taken for labels
_USUAL_ANSWERS = (ANSWER, "label", "answer", "target", "class", "sentiment")
_SHORT = Generation(until=("\n",), max_tokens=32)
_MOST_HELD_BACK = 200  # rows kept as a pool of shots where no file of shots is given


@dataclass(frozen=True)
class TableForm:
    """A template whose gaps are columns. `answer` is the answer's column, `words` what each label is called in it."""

    template: Template
    answer: str
    labels: tuple[str, ...] = ()  # in words; none where the model writes freely
    words: Mapping[str, str] = field(default_factory=dict)
    separator: str = SEPARATOR
    description: str = ""

    @property
    def key(self) -> str:
        """All that changes a prompt."""
        return json.dumps(
            [
                self.template.source,
                self.answer,
                self.labels,
                sorted(self.words.items()),
                self.separator,
                self.description,
            ]
        )

    @property
    def premise(self) -> str:
        """The template's last words."""
        return self.template.last_words

    def opening(self, row: Row) -> str:
        """The description."""
        return self.description

    def shot(self, row: Row) -> str:
        """The whole template, and what parts it from the next."""
        return self.template.example(self._texts(row)) + self.separator

    @property
    def delimiter(self) -> str:
        """The spaces before the answer."""
        return self.template.delimiter

    def asks(self, row: Row) -> list[tuple[str, str]]:
        """The template up to its answer, and every label."""
        question = self.template.question(self._texts(row))
        if not self.labels:
            return [(question, "")]
        return [(question, self.template.delimiter + label) for label in self.labels]

    def turn(self, row: Row) -> tuple[str, str]:
        """The template up to its answer, and from there on."""
        texts = self._texts(row)
        return self.template.question(texts), self.template.answer(texts)

    def turns(self, row: Row) -> list[tuple[str, str, str]]:
        """The template up to its answer, and every label, bare."""
        question = self.template.question(self._texts(row))
        return [(question, "", label) for label in self.labels or ("",)]

    def choices(self, row: Row) -> tuple[str, ...]:
        """The labels, in words."""
        return self.labels

    def gold(self, row: Row) -> int | str | Sequence[int] | Sequence[str]:
        """The label's number (-1 where it is none of them), or the answer's text."""
        answer = self._texts(row)[ANSWER]
        if not self.labels:
            return answer.strip()  # as what the model writes is stripped before the two are compared
        return self.labels.index(answer) if answer in self.labels else -1

    def target(self, row: Row) -> Any:
        """What the answer's column holds."""
        return row.get(self.answer)

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another label."""
        raw = {word: name for name, word in self.words.items()}
        return {**row, self.answer: raw.get(self.labels[choice], self.labels[choice])}

    def _texts(self, row: Row) -> dict[str, str]:
        for name in self.template.names:
            if name != ANSWER:
                self._check(row, name)
        return {**{name: text_of(value) for name, value in row.items()}, ANSWER: self._answer(row)}

    def _answer(self, row: Row) -> str:
        """The answer as it is written in a prompt."""
        self._check(row, self.answer)
        answer = text_of(row[self.answer])
        return self.words.get(answer, answer)

    def _check(self, row: Row, name: str) -> None:
        """A question may be an empty text, an answer may not."""
        if row.get(name) is None:
            raise UsageError(f"there is no {name!r}, which the template asks for")
        if name == self.answer and not text_of(row[name]).strip():
            raise UsageError(f"the answer in {name!r} is empty")


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class TableSettings:
    """How rows become a task: all that a user says of a table, or in place of what a task file says.

    None leaves what is the task's own. Raises UsageError for what excludes each other.
    """

    template: str = ""
    answer: str | None = None  # column; None takes the usual one
    labels: tuple[str, ...] = ()  # "raw=word" or "raw"; () takes those of the data
    free: bool = False  # the model writes its answer
    group: str | None = None  # column of what is not independent
    separator: str | None = None  # a table's own is SEPARATOR
    description: str | None = None  # as it stands: neither Jinja nor a column's name
    shots_from: Path | None = None
    skip_bad: bool = False
    seed: int = 0
    generation: Generation = _SHORT  # of free answers
    hold_back: bool = True  # whether a table without shots_from keeps rows for shots: where any are wanted
    compat: bool = False  # the task as lm-evaluation-harness runs it

    def __post_init__(self) -> None:
        if self.labels and self.free:
            raise UsageError("--labels names choices, and --free has none. Use one of them")

    @property
    def given(self) -> list[str]:
        """The options that change a task, of those that were given."""
        options = {
            "--description": self.description is not None, "--separator": self.separator is not None,
            "--labels": bool(self.labels), "--answer": self.answer is not None, "--free": self.free,
            "--group": self.group is not None, "--shots-from": self.shots_from is not None,
            "--skip-bad": self.skip_bad,
        }  # fmt: skip
        return [name for name, is_given in options.items() if is_given]


WRITTEN: dict[str, Any] = {  # of a task whose answer the model writes, where no file says otherwise
    "output": "generate_until",
    "metrics": (Metric("exact_match", options={"ignore_case": True}),),
    "filters": (Filter("strip", (("remove_whitespace", {}), ("take_first", {}))),),
}
_CHOSEN: dict[str, Any] = {"output": "multiple_choice", "metrics": (Metric("acc"),), "filters": (Filter("none"),)}


def table_task(path: Path, settings: TableSettings) -> Task:
    """Read `path` as a task. Shots come from `shots_from`, or from rows that are then not scored.

    Raises UsageError for broken rows, a missing column, an unknown label, shots from the scored file.
    """
    data = read_rows(path, settings.skip_bad)
    answer = _answer_column(settings, data, path)
    template = Template.parse(settings.template, answer)
    _check_columns(template, data, answer, path)
    check_group(settings.group, data.rows, path)
    others = None
    if settings.shots_from is not None:
        others = read_shots(settings.shots_from, [path], settings.skip_bad)
        _check_columns(template, others, answer, settings.shots_from)
    words, labels = _labels(settings, data, others, answer, path)
    form = TableForm(
        template, answer, labels, words, SEPARATOR if settings.separator is None else settings.separator,
        settings.description or "",
    )  # fmt: skip
    items, pool, notes = items_of("test", data.rows, settings.group), tuple[Item, ...](), data.broken
    if others is not None:
        pool, notes = items_of("shots", others.rows, settings.group), (*notes, *others.broken)
    task = Task(
        name=path.stem, items=items, pool=pool, form=form, generation=settings.generation, source=str(path),
        notes=notes, **(_CHOSEN if labels else WRITTEN),
    )  # fmt: skip
    task, told = checked(task, settings), list[str]()
    if others is None and settings.hold_back:
        kept = {item.place for item in hold_back(items, settings.seed)[1]}  # of all rows: whatever was left out
        task = _kept_for_shots(task, kept)
        rows = f"{len(task.pool)} of {len(task.items) + len(task.pool)} rows are reserved for shots and not scored"
        told = [f"{rows}; use --shots-from to score all"] * bool(task.pool)
    return replace(task, warnings=(*told, *warnings_of(task)))


def _kept_for_shots(task: Task, kept: Collection[tuple[str, int]]) -> Task:
    return replace(
        task,
        items=tuple(item for item in task.items if item.place not in kept),
        pool=tuple(item for item in task.items if item.place in kept),
    )


def read_shots(path: Path, scored: Sequence[Path], skip_bad: bool) -> Rows:
    """The rows of --shots-from. Raises UsageError where it is one of the scored files, or cannot be read."""
    if path.resolve() in {each.resolve() for each in scored}:
        raise UsageError(f"--shots-from is the scored file {path}: items would be among their own shots")
    return read_rows(path, skip_bad)


def hold_back(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Items to score, and a fifth of the rows (200 at the most), drawn by `seed`, to take shots from."""
    count = min(_MOST_HELD_BACK, len(items) // 5)
    chosen = set(random.Random(f"pool {seed}").sample(range(len(items)), count))
    return (
        [item for place, item in enumerate(items) if place not in chosen],
        [item for place, item in enumerate(items) if place in chosen],
    )


def items_of(split: str, rows: Sequence[Row], group: str | None) -> tuple[Item, ...]:
    """Rows as items; those with the same value in the column `group` are not independent."""
    return tuple(
        Item(split, n, row, text_of(row[group]) if group is not None and group in row else None, digest)
        for n, (row, digest) in enumerate(zip(rows, row_digests(rows), strict=True))
    )


def check_group(group: str | None, rows: Sequence[Row], path: Path) -> None:
    """Raises UsageError where a row lacks the column to group by."""
    lacking = next((row for row in rows if group is not None and group not in row), None)
    if lacking is not None:
        raise UsageError(
            f"{path}: there is no column {group!r} to group by.{closest(str(group), lacking)} There is:"
            f" {', '.join(lacking)}"
        )


def _answer_column(settings: TableSettings, data: Rows, path: Path) -> str:
    if settings.answer is not None:
        if settings.answer not in data.columns:
            raise UsageError(
                f"{path}: there is no column {settings.answer!r}.{closest(settings.answer, data.columns)}"
                f" There is: {', '.join(data.columns)}"
            )
        return settings.answer
    gaps = Template.parse(settings.template, _first_usual(data)).names if ANSWER in settings.template else ()
    for name in _USUAL_ANSWERS:
        if name in data.columns and name not in gaps[: gaps.index(ANSWER) if gaps else 0]:
            return name
    raise UsageError(
        f"{path}: the column with the answer is not known. Name it with --answer. There is: {', '.join(data.columns)}"
    )


def _first_usual(data: Rows) -> str:
    return next((name for name in _USUAL_ANSWERS if name in data.columns), ANSWER)


def _check_columns(template: Template, data: Rows, answer: str, path: Path) -> None:
    """The data has what the template asks for."""
    for name in dict.fromkeys((*template.names, answer)):
        if name not in data.columns and not name == ANSWER != answer:
            raise UsageError(
                f"{path}: the template asks for {{{name}}}.{closest(name, data.columns)}"
                f" There is: {', '.join(data.columns)}"
            )


def _labels(
    settings: TableSettings, data: Rows, others: Rows | None, answer: str, path: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What each raw label is called, and the labels in words; none where the answer is free text."""
    if settings.free:
        return {}, ()
    answers = (row.get(answer) for row in (*data.rows, *(others.rows if others else ())))
    there = dict.fromkeys(text_of(value) for value in answers if value is not None and text_of(value).strip())
    if settings.labels:
        words = words_of(settings.labels, list(there), f"column {answer!r} of {path}")
        return words, tuple(words.values())
    if len(there) > MOST_LABELS:
        return {}, ()
    if len(there) < 2:
        raise UsageError(
            f"{path}: every row has the answer {next(iter(there), '')!r}; there is nothing to choose between"
        )
    return {}, tuple(sorted(there))


def labels_of(text: str) -> tuple[str, ...]:
    """Labels parted by commas; one that holds a comma stands in double quotes: '"good, fine"=good,bad'.

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


def words_of(labels: Sequence[str], there: Sequence[str], where: str) -> dict[str, str]:
    """What each label is called, from "raw=word", or "raw" for one that keeps its name.

    Raises UsageError for a label that is not `there` (in `where`), and for two of one name.
    """
    pairs = [(raw, word or raw) for raw, _, word in (label.partition("=") for label in labels)]
    for raw, _ in pairs:
        if raw not in there:
            raise UsageError(
                f"--labels: {raw!r} does not occur in {where}, which has {list(there)[:5]}."
                f"{closest(raw, there)} To rename one, write {_typed(there[0] if there else 'raw')}=word"
            )
    if len({word for _, word in pairs}) < len(pairs) or len(dict(pairs)) < len(pairs):
        raise UsageError("--labels has the same word for two labels, or names one twice")
    return dict(pairs)
