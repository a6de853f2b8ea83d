"""A row as lm-evaluation-harness 0.4.13 renders it: Jinja fields, delimiters, prefixes, choices."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..base import UsageError
from .jinja import fill, last_words
from .task import Output, Row

Field = str | int | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class Fields:
    """Where question, answer and choices come from: a column's name, a template, or the thing itself."""

    text: Field
    target: Field
    choice: Field = None
    prefix: str | None = None  # what the answer begins with, given
    target_delimiter: str = " "
    shot_delimiter: str = "\n\n"


@dataclass(frozen=True)
class HarnessForm:
    """`item` renders what is scored, `example` the shots."""

    output: Output
    columns: frozenset[str]
    item: Fields
    example: Fields
    description: str = ""
    said: str | None = None  # stands, as it is, in place of the description
    words: Mapping[str, str] = field(default_factory=dict)  # what choices are called instead
    bare: bool = False  # spaces around a right text do not count

    @property
    def key(self) -> str:
        """All that changes a prompt."""
        changed = [self.said, sorted(self.words.items())] if self.said is not None or self.words else []
        return json.dumps([self.output, repr(self.item), repr(self.example), self.description, *changed])

    @property
    def delimiter(self) -> str:
        """What stands between a question and its answer; a prefix has it before itself."""
        return "" if self.item.prefix else self.item.target_delimiter

    @property
    def premise(self) -> str:
        """What doc_to_text says behind its last gap, and gen_prefix; nothing where they are a column or a number."""
        text, prefix = self.item.text, self.item.prefix or ""
        if prefix in self.columns or "{{" in prefix:
            return last_words(prefix)
        own = last_words(text) if isinstance(text, str) and text not in self.columns else ""
        return own + self._prefixed(own, prefix, self.item.target_delimiter)

    def opening(self, row: Row) -> str:
        """The description: a text that was given in its place, else a column or a template."""
        if self.said is not None:
            return self.said
        return str(row[self.description]) if self.description in row else self._fill(self.description, row)

    def shot(self, row: Row) -> str:
        """Question, delimiter, answer, delimiter."""
        fields = self.example
        question, prefix, answer = self._example(row)
        if answer is None:
            return question + self._prefixed(question, prefix, fields.target_delimiter)
        between = fields.target_delimiter if not prefix or _apart(question, prefix) else ""
        return question + between + joined(prefix, answer) + fields.shot_delimiter

    def _example(self, row: Row) -> tuple[str, str, str | None]:
        """Question, what the answer begins with, and the answer: None for a row without one; a choice may be empty."""
        fields = self.example
        question = self._text(fields, row)
        choices = self._choices(fields, row)
        if isinstance(question, int):  # the choices stand in the question
            question, choices = str(_at(choices, question)), []
        answer = self._target(fields, row)
        if isinstance(answer, list):
            answer = answer[0] if answer else ""
        prefix = self._prefix(fields, row)
        if answer is None or answer == "":
            return question, prefix, None
        written = str(_at(choices, answer)) if choices and isinstance(answer, int) else str(answer)
        return question, prefix, self.words.get(written, written)

    @property
    def separator(self) -> str:
        """What stands between shots."""
        return self.item.shot_delimiter

    def turn(self, row: Row) -> tuple[str, str | None]:
        """Question and answer, with what the answer begins with."""
        question, prefix, answer = self._example(row)
        return question, (prefix or None) if answer is None else joined(prefix, answer)

    def turns(self, row: Row) -> list[tuple[str, str, str]]:
        """Question, what the answer begins with, and how it goes on: bare, where nothing was begun."""
        fields = self.item
        text, prefix = self._text(fields, row), self._prefix(fields, row)
        begun = fields.prefix is not None and fields.prefix[-1:].strip() != ""  # as it is written, before it is filled
        between = fields.target_delimiter if begun else ""
        if isinstance(text, int):
            after = between + str(self._target(fields, row))
            return [(each, prefix, after) for each in self.choices(row)]
        if self.output == "generate_until":
            return [(text, prefix, "")]
        if self.output == "loglikelihood":
            return [(text, prefix, str(self._target(fields, row)))]
        return [(text, prefix, between + choice) for choice in self.choices(row)]

    def asks(self, row: Row) -> list[tuple[str, str]]:
        """Question and continuation for every choice."""
        fields = self.item
        if self.output == "loglikelihood_rolling":
            return [("", str(self._target(fields, row)))]
        text, prefix = self._text(fields, row), self._prefix(fields, row)
        if isinstance(text, int):  # each choice is a question of its own, the answer the same
            after = fields.target_delimiter + str(self._target(fields, row))
            return [(each + self._prefixed(each, prefix, ""), after) for each in map(str, self.choices(row))]
        question = text + self._prefixed(text, prefix, fields.target_delimiter)
        if self.output == "generate_until":
            return [(question, "")]
        if self.output == "loglikelihood":
            return [(question, str(self._target(fields, row)))]
        return [(question, f"{fields.target_delimiter}{choice}") for choice in self.choices(row)]

    def choices(self, row: Row) -> list[str]:
        """The choices as they are written; none where the model writes freely."""
        if self.output != "multiple_choice":
            return []
        found = [self.words.get(str(choice), str(choice)) for choice in self._choices(self.item, row)]
        if not found:
            raise UsageError(f"doc_to_choice {self.item.choice!r} gives no choices for a row")
        return found

    def gold(self, row: Row) -> int | str | list[int] | list[str]:
        """Index of the right choice (-1 where it is none of them), or the right text."""
        text, target = self._text(self.item, row), self._target(self.item, row)
        if self.output != "multiple_choice":
            if isinstance(target, list):
                return [self._right_text(each, row) for each in target]
            return self._right_text(target, row)
        choices = self._choices(self.item, row)
        found: Any = text if isinstance(text, int) else target
        if isinstance(found, list):
            return [self._index(each, choices) for each in found]
        return self._index(found, choices)

    def target(self, row: Row) -> Any:
        """doc_to_target as it is: an index, a text, or several."""
        return self._target(self.item, row)

    @property
    def shots_answer_alike(self) -> bool:
        """Whether an example's answer is made as a scored one's."""
        return (self.example.target, self.example.choice) == (self.item.target, self.item.choice)

    def shot_choices(self, row: Row) -> tuple[str, ...]:
        """The choices of an example, by the names that the file gives them."""
        return tuple(map(str, self._choices(self.example, row)))

    def asks_of_choices(self, row: Row) -> bool:
        """Whether each choice is a question of its own, and the answer the same for all."""
        return isinstance(self._text(self.item, row), int)

    def with_answer(self, row: Row, choice: int) -> Row:
        """The row with another answer, however the template makes it of the row."""
        return _Answered(row, choice)

    def _right_text(self, gold: Any, row: Row) -> str:
        chosen = self.item.choice is not None and isinstance(gold, int)
        text = str(_at(self._choices(self.item, row), gold) if chosen else gold)
        return text.strip() if self.bare else text

    def _index(self, gold: Any, choices: Sequence[str]) -> int:
        if isinstance(gold, int):
            return int(gold) if gold < len(choices) else -1  # True is 1
        return list(choices).index(gold) if gold in choices else -1

    def _text(self, fields: Fields, row: Row) -> str | int:
        if self.output == "loglikelihood_rolling":
            return ""
        given, indexed = fields.text, self.output == "multiple_choice"
        if isinstance(given, str) and given not in self.columns:
            made = self._fill(given, row)
            return int(made) if indexed and _whole(made) else made
        value = _column(row, given) if isinstance(given, str) else "" if given is None else given
        return value if indexed and isinstance(value, int) and not isinstance(value, bool) else str(value)

    def _target(self, fields: Fields, row: Row) -> Any:
        if isinstance(row, _Answered):
            return row.choice
        target = fields.target
        if not isinstance(target, str):
            return target
        if target in self.columns:
            value = _column(row, target)  # an index is a float where a CSV file's column has gaps
            return int(value) if isinstance(value, float) and self.item.choice and value.is_integer() else value
        made = self._fill(target, row)
        if _whole(made) and self.item.choice is not None:
            return int(made)
        if len(made) >= 2 and made[0] == "[" and made[-1] == "]":
            return _literal(made, made)
        return made

    def _choices(self, fields: Fields, row: Row) -> list[Any]:
        choice = fields.choice
        if choice is None:
            return []
        if isinstance(choice, dict):
            return list(choice.values())
        if isinstance(choice, str):
            choice = _column(row, choice) if choice in self.columns else _literal(self._fill(choice, row), None)
        if not isinstance(choice, list | tuple):
            raise UsageError(f"doc_to_choice {fields.choice!r} does not give a list of choices")
        return list(choice)

    def _prefix(self, fields: Fields, row: Row) -> str:
        if not fields.prefix:
            return ""
        return str(row[fields.prefix]) if fields.prefix in row else self._fill(fields.prefix, row)

    def _prefixed(self, question: str, prefix: str, delimiter: str) -> str:
        return (delimiter if _apart(question, prefix) else "") + prefix if prefix else ""

    def _fill(self, source: str, row: Row) -> str:
        return fill(source, row.row if isinstance(row, _Answered) else row) if source else ""


class _Answered(Mapping[str, Any]):
    """A row whose answer is said to be another choice."""

    def __init__(self, row: Row, choice: int) -> None:
        self.row, self.choice = row, choice

    def __getitem__(self, name: str) -> Any:
        return self.row[name]

    def __iter__(self) -> Any:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise UsageError(f"a row has no column {name!r}. There is: {', '.join(row)}")
    return row[name]


def _at(choices: Sequence[Any], place: int) -> Any:
    if not 0 <= place < len(choices):
        raise UsageError(f"the answer is choice {place}, and there are {len(choices)} choices")
    return choices[place]


def _whole(text: str) -> bool:
    """Whether a template made an index: digits, and few enough to be one."""
    return text.isascii() and text.isdigit() and len(text) < 10


def _literal(text: str, otherwise: Any) -> Any:
    """A Python literal, without running anything."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return otherwise


def _apart(before: str, after: str) -> bool:
    """Whether two texts would run into each other."""
    return before != "" and not (before[-1].isspace() or after[:1].isspace())


def joined(prefix: str, text: str, delimiter: str = " ") -> str:
    """Both, and the delimiter between them where neither brings a space of its own."""
    if not prefix or not text:
        return prefix or text
    return prefix + (delimiter if _apart(prefix, text) else "") + text


def overridden(fields: Fields, changes: Mapping[str, Any]) -> Fields:
    """Fields of shots where a task says other ones for them."""
    return replace(fields, **{name: value for name, value in changes.items() if value is not None})
