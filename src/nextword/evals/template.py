r"""Prompt templates: text with placeholders for the columns of a row.

A plain template has placeholders such as `{text}` or `{options[0]}`; `{{` and `}}` are literal braces. A Jinja template
has `{{ text }}` and all other features of Jinja; it is rendered in a separate process, which can be killed. Both have
one placeholder for the answer, `output` or the name of the answer's column. The model's question is the template up to
there, without the spaces before it: they belong to the answer's first token (" positive" is one token, "positive" after
a single space is a rarer one).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..base import UsageError, printable
from ..base.errors import closest

ANSWER = "output"
SEPARATOR = "\n\n"
JINJA_SUFFIXES = (".jinja", ".jinja2", ".j2")
_GAP = re.compile(r"\{\{|\}\}|\{([^\W\d]\w*(?:\[\d{1,4}\])?)\}|[{}]")

Shot = Mapping[str, Any]


class Jinja(str):
    """The source of a Jinja template; any other string is a plain one."""


@dataclass(frozen=True)
class Prompt:
    """A complete prompt: `text` for the model, with `shots` examples."""

    text: str
    shots: int


@dataclass(frozen=True)
class Template:
    """A parsed template: `parts` alternate between literal texts and placeholders (text, name, text, name, ..., text).

    A Jinja template has two sources with the answer between them.
    """

    source: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, source: str, answer: str = ANSWER) -> Template:
        """Parse a template with the answer at `{output}`, or at the given name of the answer.

        Raises UsageError for an unbalanced brace, or unless there is exactly one placeholder for the answer.
        """
        jinja = isinstance(source, Jinja)
        parts = _jinja_parts(source, answer) if jinja else _plain_parts(source)
        if ANSWER not in parts[1::2]:
            parts = [ANSWER if index % 2 and part == answer else part for index, part in enumerate(parts)]
        if parts[1::2].count(ANSWER) != 1:
            names = dict.fromkeys([ANSWER, answer])
            gaps = " or ".join(f"{{{{ {name} }}}}" if jinja else f"{{{name}}}" for name in names)
            raise UsageError(f"the template needs exactly one {gaps}: where the answer goes")
        return cls(source, tuple(parts))

    @property
    def jinja(self) -> bool:
        """Whether it is a Jinja template."""
        return isinstance(self.source, Jinja)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the placeholders, in order; for a Jinja template only the answer's."""
        return self.parts[1::2]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, in order."""
        return tuple(name.partition("[")[0] for name in self.names)

    @property
    def before(self) -> str:
        """The literal text between the answer and the previous placeholder."""
        text = self.parts[2 * self.names.index(ANSWER)]
        return re.split(r"\}\}|%\}|#\}", text)[-1] if self.jinja else text

    @property
    def delimiter(self) -> str:
        """The spaces before the answer."""
        return self.before[len(self.before.rstrip(" ")) :]

    @property
    def last_words(self) -> str:
        """The text between the last placeholder and the answer, without surrounding spaces."""
        return self.before.lstrip().rstrip(" ")

    def question(self, values: Shot) -> str:
        """The filled template up to its answer, for the model to continue."""
        return self._fill(values, self.parts[: 2 * self.names.index(ANSWER) + 1]).rstrip(" ")

    def example(self, values: Shot) -> str:
        """The complete filled template, answer included."""
        return self._fill(values, self.parts)

    def answer(self, values: Shot) -> str:
        """The filled template from its answer on, without surrounding spaces: an assistant's message."""
        return self._fill(values, ("", *self.parts[2 * self.names.index(ANSWER) + 1 :])).strip()

    def _fill(self, values: Shot, parts: Sequence[str]) -> str:
        return "".join(
            _value(part, values) if index % 2 else _rendered(part, values) if self.jinja else part
            for index, part in enumerate(parts)
        )


def _plain_parts(source: str) -> list[str]:
    parts, literal, end = [], "", 0
    for match in _GAP.finditer(source):
        literal += source[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif match[1]:
            parts += [literal, match[1]]
            literal = ""
        else:
            raise UsageError(
                f"the template has an unmatched {match[0]!r} at character {match.start() + 1}."
                " Placeholders are {input} or {output}; double a literal brace"
            )
    return [*parts, literal + source[end:]]


def _jinja_parts(source: str, answer: str) -> list[str]:
    """The sources before and after the answer, and its name between them."""
    for name in dict.fromkeys([ANSWER, answer]):
        sides = re.split(r"\{\{\s*" + re.escape(name) + r"\s*\}\}", source)
        if len(sides) > 1:
            break
    return [part for side in sides for part in (side, ANSWER)][:-1]


def _value(gap: str, values: Shot) -> str:
    name, bracket, number = gap.rstrip("]").partition("[")
    if name not in values:
        raise UsageError(f"the template has unknown {{{name}}}.{closest(name, values)} Known: {', '.join(values)}")
    value = values[name]
    if value is None:
        raise UsageError(f"there is no {name!r}, which the template uses")
    if not bracket:
        return text_of(value)
    if not isinstance(value, list | tuple) or int(number) >= len(value):
        raise UsageError(f"{name!r} has no entry {number}: it is {printable(repr(value), 60)}")
    return text_of(value[int(number)])


def text_of(value: Any) -> str:
    """A row's value as in a prompt: JSON, unless it is a string."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rendered(source: str, values: Shot) -> str:
    return _render(source, json.dumps(dict(values), ensure_ascii=False, default=str)) if source else ""


@lru_cache(maxsize=1 << 16)  # an example occurs in many prompts
def _render(source: str, values: str) -> str:
    from ..text.jinja import render

    return render(source, json.loads(values), "the template", strict=True)


def parse_shot(text: str) -> dict[str, str]:
    """Parse "input => output". Raises UsageError if the arrow is missing or a side is empty."""
    left, arrow, right = text.rpartition("=>")
    if not arrow or not left.strip() or not right.strip():
        raise UsageError(
            f"shot {text!r} is not of the form 'input => output', as in 'this movie is great! => positive'"
        )
    return {"input": left.strip(), ANSWER: right.strip()}


def few_shot(template: Template, shots: Sequence[Shot], values: Shot, separator: str = SEPARATOR) -> Prompt:
    """The examples, then the question, with `separator` between them."""
    texts = [template.example(shot) for shot in shots]
    return Prompt(separator.join([*texts, template.question(values)]), len(texts))
