"""A task from a table of rows and a template with gaps."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import UsageError
from ..base.errors import closest
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

    def opening(self, row: Row) -> str:
        """The description."""
        return self.description

    def shot(self, row: Row) -> str:
        """The whole template, and what parts it from the next."""
        return self.template.example(self._texts(row)) + self.separator

    def asks(self, row: Row) -> list[tuple[str, str]]:
        """The template up to its answer, and every label."""
        question = self.template.question(self._texts(row))
        if not self.labels:
            return [(question, "")]
        return [(question, self.template.delimiter + label) for label in self.labels]

    @property
    def delimiter(self) -> str:
        """What stands between shots."""
        return self.separator

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

    def gold(self, row: Row) -> int | str:
        """The label's number, or the answer's text."""
        answer = self._texts(row)[ANSWER]
        return self.labels.index(answer) if self.labels else answer

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another label."""
        raw = {word: name for name, word in self.words.items()}
        return {**row, self.answer: raw.get(self.labels[choice], self.labels[choice])}

    def _texts(self, row: Row) -> dict[str, str]:
        texts = {name: _text(value) for name, value in row.items()}
        answer = texts.get(self.answer, "")
        return {**texts, ANSWER: self.words.get(answer, answer)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class TableSettings:
    """How a file becomes a task."""

    template: str
    answer: str | None = None  # column; None takes the usual one
    labels: tuple[str, ...] = ()  # "raw=word" or "word"; () takes those of the data
    free: bool = False  # the model writes its answer
    group: str | None = None  # column of what is not independent
    separator: str = SEPARATOR
    description: str = ""
    shots_from: Path | None = None
    skip_bad: bool = False
    seed: int = 0
    generation: Generation = _SHORT


def table_task(path: Path, settings: TableSettings) -> Task:
    """Read `path` as a task. Shots come from `shots_from`, or from rows that are then not scored.

    Raises UsageError for broken rows, a missing column, an unknown label, shots from the scored file.
    """
    data = read_rows(path, settings.skip_bad)
    notes = list(data.broken)
    answer = _answer_column(settings, data, path)
    template = Template.parse(settings.template, answer)
    _check_columns(template, data, answer, path)
    if settings.shots_from is not None:
        if settings.shots_from.resolve() == path.resolve():
            raise UsageError(f"--shots-from is the scored file {path}: its examples would stand in their own prompts")
        others = read_rows(settings.shots_from, settings.skip_bad)
        _check_columns(template, others, answer, settings.shots_from)
        notes += others.broken
    else:
        others = None
    words, labels = _labels(settings, data, others, answer, path)
    form = TableForm(template, answer, labels, words, settings.separator, settings.description)
    items = _items("test", data, settings.group, path)
    if others is not None:
        pool = _items("shots", others, None, path)
    else:
        items, pool = hold_back(items, settings.seed)
    output = "multiple_choice" if labels else "generate_until"
    return Task(
        name=path.stem, output=output, items=tuple(items), pool=tuple(pool), form=form,  # type: ignore[arg-type]
        metrics=(Metric("acc"),) if labels else (Metric("exact_match", options={"ignore_case": True}),),
        filters=(Filter("none") if labels else Filter("strip", (("remove_whitespace", {}), ("take_first", {}))),),
        generation=settings.generation, source=str(path), notes=tuple(notes),
    )  # fmt: skip


def hold_back(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Items to score, and a fifth of the rows (200 at the most), drawn by `seed`, to take shots from."""
    count = min(_MOST_HELD_BACK, len(items) // 5)
    chosen = set(random.Random(f"pool {seed}").sample(range(len(items)), count))
    return (
        [item for place, item in enumerate(items) if place not in chosen],
        [item for place, item in enumerate(items) if place in chosen],
    )


def _items(split: str, data: Rows, group: str | None, path: Path) -> list[Item]:
    lacking = next((row for row in data.rows if group is not None and group not in row), None)
    if lacking is not None:
        raise UsageError(f"{path}: there is no column {group!r} to group by.{closest(str(group), lacking)}")
    return [
        Item(split, n, row, None if group is None else _text(row[group]), digest)
        for n, (row, digest) in enumerate(zip(data.rows, row_digests(data.rows), strict=True))
    ]


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
        f"{path}: which column holds the answer? Name it with --answer. There is: {', '.join(data.columns)}"
    )


def _first_usual(data: Rows) -> str:
    return next((name for name in _USUAL_ANSWERS if name in data.columns), ANSWER)


def _check_columns(template: Template, data: Rows, answer: str, path: Path) -> None:
    """Every row has what the template asks for."""
    for name in dict.fromkeys((*template.names, answer)):
        if name == ANSWER != answer:
            continue
        if name not in data.columns:
            raise UsageError(
                f"{path}: the template asks for {{{name}}}.{closest(name, data.columns)}"
                f" There is: {', '.join(data.columns)}"
            )
        lacking = next((number for number, row in enumerate(data.rows, 1) if _lacks(row, name, answer)), None)
        if lacking is not None:
            raise UsageError(f"{path}: row {lacking} has no {name!r}, which the template asks for")


def _lacks(row: Row, name: str, answer: str) -> bool:
    """Whether a row has nothing in a column: a question may be an empty text, an answer may not."""
    value = row.get(name)
    return value is None or (name == answer and not _text(value).strip())


def _labels(
    settings: TableSettings, data: Rows, others: Rows | None, answer: str, path: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What each raw label is called, and the labels in words; none where the answer is free text."""
    if settings.free:
        return {}, ()
    there = Counter(_text(row[answer]) for row in (*data.rows, *(others.rows if others else ())))
    if not settings.labels:
        if len(there) > MOST_LABELS:
            return {}, ()
        if len(there) < 2:
            raise UsageError(f"{path}: every row has the answer {next(iter(there))!r}; there is nothing to tell apart")
        return {}, tuple(sorted(there))
    words = {}
    for label in settings.labels:
        raw, _, word = label.partition("=")
        words[raw] = word or raw
    unknown = [label for label in there if label not in words]
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:5])
        raise UsageError(f"{path}: column {answer!r} also holds {shown}, which --labels does not name")
    missing = [label for label in words if label not in there]
    if missing:
        raise UsageError(
            f"{path}: the label {missing[0]!r} is nowhere in column {answer!r}, which has {list(there)[:5]}"
        )
    if len(set(words.values())) < len(words):
        raise UsageError("--labels calls two labels by the same word")
    return words, tuple(words.values())
