"""A task: rows of data, and the format in which each becomes a question, an answer and choices."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..base import UsageError, printable
from ..base.fields import Within
from .template import ANSWER, SEPARATOR, Template, text_of

Row = Mapping[str, Any]
Ids = tuple[int, ...]  # of tokens
Output = Literal["multiple_choice", "generate_until"]
Gold = int | str | list[str]  # the right choice's index (-1: none of them), the right text, or several right texts
ScorerFunction = Callable[[str, str | list[str], Row], float]  # answer, gold, row -> a score from 0 to 1


@dataclass(frozen=True)
class Item:
    """A row of the data, and its split and number, which no other row has."""

    split: str
    index: int
    values: Row
    group: str | None = None  # items that share it are not independent of each other
    digest: str = ""  # of the row as it was read (`row_digests`): pairs the same rows of two evaluations

    @property
    def row_id(self) -> tuple[str, int]:
        """Its split and row number, from 0 on."""
        return self.split, self.index

    @property
    def label(self) -> str:
        """Its split and row number as a text."""
        return f"{self.split} {self.index}"


def row_digests(rows: Sequence[Row]) -> list[str]:
    """A hash of each row's content, wherever the row is in its file; the second of two equal rows has its own."""
    seen: Counter[str] = Counter()
    digests = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        seen[text] += 1
        digests.append(text_digest(f"{seen[text]} {text}")[:24])
    return digests


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal; half of a surrogate pair, which a row may hold, is encoded too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class PromptFormat:
    """How a row becomes text: a template, the column of the right answer, and the choices.

    `choices_from` lists the choices by the names that the data has, or names the column that holds each row's own; it
    is empty for free answers. With `indexed` the target is a choice's number.
    """

    template: Template
    target: str
    choices_from: tuple[str, ...] | str = ()
    words: Mapping[str, str] = field(default_factory=dict)  # what choices are called in prompts instead
    separator: str = SEPARATOR
    description: str = ""
    indexed: bool = False
    generates: bool = False  # the model writes its answer; choices then only name the right one

    @property
    def key(self) -> str:
        """A text that differs wherever a prompt would."""
        return json.dumps([
            self.template.source, self.template.jinja, self.target, self.choices_from, sorted(self.words.items()),
            self.separator, self.description, self.indexed, self.generates,
        ])  # fmt: skip

    @property
    def delimiter(self) -> str:
        """The text between a question and its answer."""
        return self.template.delimiter

    def example(self, row: Row) -> str:
        """The row as a shot: the whole template, and the separator."""
        return self.template.example(self._filled(row)) + self.separator

    def questions(self, row: Row) -> list[tuple[str, str]]:
        """The question and each choice as its continuation; one empty continuation where the model writes."""
        question = self.template.question(self._filled(row))
        choices = self.choices(row)
        return [(question, self.delimiter + choice) for choice in choices] if choices else [(question, "")]

    def turn(self, row: Row) -> tuple[str, str]:
        """The row as a shot in a chat: what the user says, and the assistant."""
        values = self._filled(row)
        return self.template.question(values), self.template.answer(values)

    def chat_questions(self, row: Row) -> list[tuple[str, str]]:
        """`questions` in a chat: the choices are bare."""
        question = self.template.question(self._filled(row))
        return [(question, choice) for choice in self.choices(row) or ("",)]

    def choices(self, row: Row) -> tuple[str, ...]:
        """The answers to choose from, as prompts call them; none where the model writes freely."""
        return () if self.generates else tuple(self.words.get(name, name) for name in self.choice_names(row))

    def choice_names(self, row: Row) -> tuple[str, ...]:
        """The choices by the names that the data has. Raises UsageError for a column that is no list of them."""
        if isinstance(self.choices_from, tuple):
            return self.choices_from
        names = row.get(self.choices_from)
        if not isinstance(names, list | tuple) or not names:
            raise UsageError(f"{self.choices_from!r} is not a list of choices: {printable(repr(names), 60)}")
        return tuple(map(text_of, names))

    def gold(self, row: Row) -> Gold:
        """The right choice's index (-1 where it is none of them), or the right text without spaces around it."""
        names, value = self.choice_names(row), self._target(row)
        if not names:
            return [text_of(text).strip() for text in value] if isinstance(value, list) else text_of(value).strip()
        index = self._index(value, names)
        return self._answer(row).strip() if self.generates else index

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another choice as its answer: for shots with random labels."""
        return {**row, self.target: choice if self.indexed else self.choice_names(row)[choice]}

    def _index(self, value: Any, names: Sequence[str]) -> int:
        text = text_of(value)
        if self.indexed:
            return int(text) if is_index(text, names) else -1
        return names.index(text) if text in names else -1

    def _answer(self, row: Row) -> str:
        """The answer as prompts have it; the first of several."""
        value, names = self._target(row), self.choice_names(row)
        if names:
            index = self._index(value, names)
            name = text_of(value) if index < 0 else names[index]
            return self.words.get(name, name)
        return text_of(value[0]) if isinstance(value, list) and value else text_of(value)

    def _filled(self, row: Row) -> dict[str, Any]:
        return {**row, ANSWER: self._answer(row)}

    def _target(self, row: Row) -> Any:
        value = row.get(self.target)
        if value is None:
            raise UsageError(f"there is no {self.target!r}, which has the answer")
        if value == [] or not text_of(value).strip():
            raise UsageError(f"the answer in {self.target!r} is empty")
        return value


def is_index(text: str, names: Sequence[str]) -> bool:
    """Whether a text is the number of one of the choices."""
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names)


@dataclass(frozen=True)
class Scorer:
    """How a generated answer is scored: `source` as `--scorer` takes it, "" for a function of the user's own."""

    name: str
    source: str
    function: ScorerFunction = field(repr=False)


@dataclass(frozen=True)
class Generation:
    """How a free answer is written."""

    until: tuple[str, ...] = ("\n",)
    max_tokens: Annotated[int, Within(least=1)] = 32
    temperature: Annotated[float, Within(least=0)] = 0.0
    top_p: Annotated[float, Within(above=0, most=1)] = 1.0
    top_k: Annotated[int, Within(least=0)] = 0
    choices: tuple[str, ...] = ()  # nothing but one of these may be written; empty: anything


@dataclass(frozen=True)
class Chat:
    """That a task is asked through a model's chat template, after this system message."""

    system: str = ""


@dataclass(frozen=True)
class Task:
    """What is asked, of which rows, and how answers are scored."""

    name: str
    items: tuple[Item, ...]  # to be scored
    fewshot_pool: tuple[Item, ...]  # shots are drawn from these
    format: PromptFormat
    scorers: tuple[Scorer, ...] = ()  # of generated answers; the first one's is the score
    generation: Generation = Generation()
    shots: int = 0  # the number that its author meant
    source: str = ""  # where it was read
    notes: tuple[str, ...] = ()  # about reading it (skipped rows, ...)
    warnings: tuple[str, ...] = ()  # what is probably a mistake (two spaces before an answer, ...)
    chat: Chat | None = None  # None: prompts are raw text

    @property
    def output(self) -> Output:
        """What the model is asked for."""
        return "generate_until" if self.format.generates else "multiple_choice"


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class LogprobRequest:
    """A text and what may follow it: how probable is that? An empty continuation is one that the model writes.

    `messages` are a chat, of which each model's own template makes the text.
    """

    context: str
    continuation: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A request in tokens. With `split_token` text and continuation meet inside a token of the whole."""

    context: Ids
    continuation: Ids
    split_token: bool = False


@dataclass(frozen=True)
class Likelihood:
    """ln p of each token of a continuation, and whether each of them was the likeliest at its position."""

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def logprob(self) -> float:
        """ln p of the whole continuation."""
        return sum(self.logprobs)


def requests(task: Task, shots: Sequence[Item], item: Item, premise: str | None = None) -> list[LogprobRequest]:
    """What the model is asked of one item: a request for each choice, or a single one.

    A `premise` replaces the question: how probable are the choices before anything is asked?
    """
    before = task.format.description + "".join(task.format.example(shot.values) for shot in shots)
    return [
        LogprobRequest(before + (question if premise is None else premise), continuation)
        for question, continuation in task.format.questions(item.values)
    ]
