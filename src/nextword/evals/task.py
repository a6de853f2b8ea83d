"""Task: rows of data, and the format that turns each into a question, choices and an answer."""

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
Gold = int | str | list[str]  # the correct choice's index (-1: none), the correct text, or several correct texts
ScorerFunction = Callable[[str, str | list[str], Row], float]  # answer, gold, row -> a score from 0 to 1


@dataclass(frozen=True)
class Item:
    """A row of the data, with its unique split and number."""

    split: str
    index: int
    values: Row
    group: str | None = None  # items with the same group are not independent
    digest: str = ""  # of the row as read (`row_digests`): identifies the same row in two evaluations

    @property
    def row_id(self) -> tuple[str, int]:
        """Its split and row number, from 0."""
        return self.split, self.index

    @property
    def label(self) -> str:
        """Its split and row number as a text."""
        return f"{self.split} {self.index}"


def row_digests(rows: Sequence[Row]) -> list[str]:
    """A hash of each row's content, independent of its position; the second of two equal rows gets another."""
    seen: Counter[str] = Counter()
    digests = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        seen[text] += 1
        digests.append(text_digest(f"{seen[text]} {text}")[:24])
    return digests


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal; unpaired surrogates, which a row may have, are encoded too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class PromptFormat:
    """How a row becomes text: a template, the column of the correct answer, and the choices.

    `choices_from` lists the choices by the data's names, or names the column with each row's own; it is empty for free
    answers. With `indexed` the target is a choice's index.
    """

    template: Template
    target: str
    choices_from: tuple[str, ...] | str = ()
    words: Mapping[str, str] = field(default_factory=dict)  # choice → its name in prompts
    separator: str = SEPARATOR
    description: str = ""
    indexed: bool = False
    generates: bool = False  # answers are generated; choices then only name the correct one

    @property
    def key(self) -> str:
        """A string of everything that affects prompts."""
        return json.dumps([
            self.template.source, self.template.jinja, self.target, self.choices_from, sorted(self.words.items()),
            self.separator, self.description, self.indexed, self.generates,
        ])  # fmt: skip

    @property
    def delimiter(self) -> str:
        """The text between a question and its answer."""
        return self.template.delimiter

    def example(self, row: Row) -> str:
        """The row as a shot: the filled template, and the separator."""
        return self.template.example(self._filled(row)) + self.separator

    def questions(self, row: Row) -> list[tuple[str, str]]:
        """The question, and each choice as its continuation; one empty continuation for generated answers."""
        question = self.template.question(self._filled(row))
        choices = self.choices(row)
        return [(question, self.delimiter + choice) for choice in choices] if choices else [(question, "")]

    def turn(self, row: Row) -> tuple[str, str]:
        """The row as a shot in a chat: the user's and the assistant's message."""
        values = self._filled(row)
        return self.template.question(values), self.template.answer(values)

    def chat_questions(self, row: Row) -> list[tuple[str, str]]:
        """`questions` in a chat, with choices without delimiters."""
        question = self.template.question(self._filled(row))
        return [(question, choice) for choice in self.choices(row) or ("",)]

    def choices(self, row: Row) -> tuple[str, ...]:
        """The choices, by their names in prompts; none for free answers."""
        return () if self.generates else tuple(self.words.get(name, name) for name in self.choice_names(row))

    def choice_names(self, row: Row) -> tuple[str, ...]:
        """The choices, by their names in the data. Raises UsageError if their column is not a list."""
        if isinstance(self.choices_from, tuple):
            return self.choices_from
        names = row.get(self.choices_from)
        if not isinstance(names, list | tuple) or not names:
            raise UsageError(f"{self.choices_from!r} is not a list of choices: {printable(repr(names), 60)}")
        return tuple(map(text_of, names))

    def gold(self, row: Row) -> Gold:
        """The correct choice's index (-1: none of them), or the correct text without surrounding spaces."""
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
        """The answer as in prompts; the first of several."""
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
            raise UsageError(f"there is no {self.target!r}, the column of the answer")
        if value == [] or not text_of(value).strip():
            raise UsageError(f"the answer in {self.target!r} is empty")
        return value


def is_index(text: str, names: Sequence[str]) -> bool:
    """Whether a text is the index of one of the choices."""
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names)


@dataclass(frozen=True)
class Scorer:
    """How a generated answer is scored: `source` as in `--scorer`, "" for a user's function."""

    name: str
    source: str
    function: ScorerFunction = field(repr=False)


@dataclass(frozen=True)
class Generation:
    """Generation settings of a free answer."""

    until: tuple[str, ...] = ("\n",)
    max_tokens: Annotated[int, Within(least=1)] = 32
    temperature: Annotated[float, Within(least=0)] = 0.0
    top_p: Annotated[float, Within(above=0, most=1)] = 1.0
    top_k: Annotated[int, Within(least=0)] = 0
    choices: tuple[str, ...] = ()  # constrain decoding to one of these; empty: anything


@dataclass(frozen=True)
class Chat:
    """Marks a task as asked through a model's chat template, with this system message."""

    system: str = ""


@dataclass(frozen=True)
class Task:
    """A task: rows, prompt format, and how answers are scored."""

    name: str
    items: tuple[Item, ...]  # to score
    fewshot_pool: tuple[Item, ...]  # to draw shots from
    format: PromptFormat
    scorers: tuple[Scorer, ...] = ()  # of generated answers; the first gives the score
    generation: Generation = Generation()
    shots: int = 0  # default number of shots
    source: str = ""  # the file it was read from
    notes: tuple[str, ...] = ()  # from reading it (skipped rows, ...)
    warnings: tuple[str, ...] = ()  # probable mistakes (two spaces before an answer, ...)
    chat: Chat | None = None  # None: prompts are raw text

    @property
    def output(self) -> Output:
        """The kind of output: a choice or a generated answer."""
        return "generate_until" if self.format.generates else "multiple_choice"


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class LogprobRequest:
    """A context and a continuation to score. An empty continuation is to be generated.

    `messages` are a chat, to be rendered by each model's template.
    """

    context: str
    continuation: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A request in tokens. `split_token`: context and continuation meet inside a token of the full text."""

    context: Ids
    continuation: Ids
    split_token: bool = False


@dataclass(frozen=True)
class Likelihood:
    """ln p of each token of a continuation, and whether each was the most likely at its position."""

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def logprob(self) -> float:
        """ln p of the continuation."""
        return sum(self.logprobs)


def requests(task: Task, shots: Sequence[Item], item: Item, premise: str | None = None) -> list[LogprobRequest]:
    """The requests for one item: one per choice, or a single one.

    A `premise` replaces the question, for the choices' prior probability.
    """
    before = task.format.description + "".join(task.format.example(shot.values) for shot in shots)
    return [
        LogprobRequest(before + (question if premise is None else premise), continuation)
        for question, continuation in task.format.questions(item.values)
    ]
