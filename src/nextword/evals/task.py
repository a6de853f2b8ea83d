"""A task: rows of data, and the form in which each becomes a question, an answer and choices."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Row = Mapping[str, Any]
Ids = tuple[int, ...]  # of tokens
Output = Literal["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"]


@dataclass(frozen=True)
class Item:
    """A row of the data, and where it stands: that tells a scored item from the shots."""

    split: str
    index: int
    values: Row
    group: str | None = None  # items that share it are not independent of each other
    digest: str = ""  # of the row as it was read (`row_digests`): what pairs the same rows of two evaluations

    @property
    def place(self) -> tuple[str, int]:
        """What no other row of the data has."""
        return self.split, self.index

    @property
    def label(self) -> str:
        """Its place in words: split and row number, from 0 on."""
        return f"{self.split} {self.index}"


def row_digests(rows: Sequence[Row]) -> list[str]:
    """A hash of each row's content, the same wherever the row stands; the second of two equal rows has its own."""
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


class Form(Protocol):
    """How a row becomes text."""

    @property
    def key(self) -> str:
        """A text that differs wherever the form does."""

    @property
    def premise(self) -> str:
        """What a question says behind its last gap: the part of it that asks for an answer, whatever the row."""

    @property
    def delimiter(self) -> str:
        """What stands between a question and its answer."""

    def opening(self, row: Row) -> str:
        """What stands before the shots of this row's prompt."""

    def shot(self, row: Row) -> str:
        """The row as an example, answered, with what parts it from the next."""

    def asks(self, row: Row) -> Sequence[tuple[str, str]]:
        """Question and continuation for each choice: mostly one question and as many continuations.

        One pair with an empty continuation where the model writes freely; one with the right text where only its
        probability is asked.
        """

    @property
    def separator(self) -> str:
        """What parts the shots, and a system message from the opening."""

    def turn(self, row: Row) -> tuple[str, str | None]:
        """The row as an example in a chat: what the user says, and the answer, None where there is none."""

    def turns(self, row: Row) -> Sequence[tuple[str, str, str]]:
        """`asks` in a chat: what the user says, what the answer is begun with (mostly nothing), how it goes on."""

    def choices(self, row: Row) -> Sequence[str]:
        """The answers to choose from, bare; none where the model writes freely."""

    def gold(self, row: Row) -> int | str | Sequence[int] | Sequence[str]:
        """The right choice's index, or the right text; several where each of them is right."""

    def target(self, row: Row) -> Any:
        """The answer as the data or the task file has it: an index, a text, or several; None where there is none."""

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another choice as its answer: for shots with random labels."""


@dataclass(frozen=True)
class Metric:
    """One number over the items; `options` are its own (exact_match's ignore_case ...).

    `function` scores a free answer from 0 to 1 by itself: of the answer, the gold one or a list of them, and the row.
    """

    name: str
    aggregation: str = "mean"
    higher_is_better: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[[str, Any, Row], float] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Filter:
    """A chain of steps that turns what the model wrote into an answer; each step is its name and its options."""

    name: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...] = (("take_first", {}),)


@dataclass(frozen=True)
class Generation:
    """How a free answer is written."""

    until: tuple[str, ...] = ("\n\n",)
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repeats: int = 1
    choices: tuple[str, ...] = ()  # nothing but one of these may be written; empty: anything


@dataclass(frozen=True)
class Chat:
    """That a task is asked through a model's chat template, after this system message."""

    system: str = ""


@dataclass(frozen=True)
class Task:
    """What is asked, of which rows, and how answers are scored."""

    name: str
    output: Output
    items: tuple[Item, ...]  # to be scored
    pool: tuple[Item, ...]  # shots are drawn from these
    form: Form
    metrics: tuple[Metric, ...] = (Metric("acc"),)
    filters: tuple[Filter, ...] = (Filter("none"),)
    generation: Generation = Generation()
    shots: int = 0  # the number that its author meant
    source: str = ""  # where it was read
    notes: tuple[str, ...] = ()  # what reading it should tell the user (skipped rows, ...)
    warnings: tuple[str, ...] = ()  # what is likely not meant, or not known (rows kept from scoring, two spaces, ...)
    harness: Mapping[str, Any] = field(default_factory=dict)  # the lm-evaluation-harness file, resolved, if it is one
    chat: Chat | None = None  # None: its text is the prompt, raw


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # system, user or assistant; an assistant's at the end is begun, and the model goes on
    content: str


@dataclass(frozen=True)
class Request:
    """A text and what may follow it: the question put to a model is how probable that is.

    `messages` are a chat, of which each model's own template makes the text.
    """

    context: str
    continuation: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """A request in tokens. `apart` tells that text and continuation meet inside a token of the whole."""

    context: Ids
    continuation: Ids
    apart: bool = False


@dataclass(frozen=True)
class Likelihood:
    """ln p of each token of a continuation, and whether each of them was the likeliest at its place."""

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def logprob(self) -> float:
        """ln p of the whole continuation."""
        return sum(self.logprobs)


def requests(task: Task, shots: Sequence[Item], item: Item) -> list[Request]:
    """What the model is asked of one item: a request a choice, or a single one."""
    before = _before(task, shots, item)
    return [Request(before + question, continuation) for question, continuation in task.form.asks(item.values)]


def premises(task: Task, shots: Sequence[Item], item: Item, premise: str) -> list[Request]:
    """The same with `premise` in place of the question: how probable the choices are before anything is asked."""
    before = _before(task, shots, item)
    return [Request(before + premise, continuation) for _, continuation in task.form.asks(item.values)]


def _before(task: Task, shots: Sequence[Item], item: Item) -> str:
    return task.form.opening(item.values) + "".join(task.form.shot(shot.values) for shot in shots)
