"""Zero-, one- and few-shot prompts: a form with gaps, filled from examples.

A template is text with named gaps, `{input}` and `{output}`; `{{` and `}}` stand for braces. The question put to the
model is the template up to `{output}`, without the spaces before it: they belong to the answer's first
token (" positive" is one token, "positive" after a lone space is a rarer one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..base import UsageError
from ..base.errors import closest

ANSWER = "output"
SEPARATOR = "\n\n"
_GAP = re.compile(r"\{\{|\}\}|\{([^\W\d]\w*)\}|[{}]")

Shot = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A finished prompt: `text` is what the model reads, `shots` how many examples it holds."""

    text: str
    shots: int


@dataclass(frozen=True)
class Template:
    """A parsed template. `parts` are literal texts and gaps in turn: text, name, text, name, ..., text."""

    source: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, source: str, answer: str = ANSWER) -> Template:
        """Read a template whose answer stands at `{output}`, or else at `{answer}` by the name given.

        Raises UsageError for a lone brace or where the answer's gap is missing.
        """
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
                    f"the template has a lone {match[0]!r} at character {match.start() + 1}."
                    " A gap is {input} or {output}; a brace itself is written twice"
                )
        if ANSWER not in parts[1::2]:
            parts = [ANSWER if place % 2 and part == answer else part for place, part in enumerate(parts)]
        template = cls(source, (*parts, literal + source[end:]))
        if template.names.count(ANSWER) != 1:
            wanted = "{output}" if answer == ANSWER else f"{{output}} or {{{answer}}}"
            raise UsageError(f"the template needs exactly one {wanted}: where the answer stands")
        return template

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the gaps, in order."""
        return self.parts[1::2]

    @property
    def before(self) -> str:
        """What stands between the answer and the gap before it."""
        return self.parts[2 * self.names.index(ANSWER)]

    @property
    def delimiter(self) -> str:
        """The spaces before the answer."""
        return self.before[len(self.before.rstrip(" ")) :]

    @property
    def last_words(self) -> str:
        """What stands between the last gap and the answer, without the spaces before it."""
        return self.parts[2 * self.names.index(ANSWER)].lstrip().rstrip(" ")

    def question(self, values: Shot) -> str:
        """The template up to its answer, filled; what the model is to continue."""
        return self._fill(values, self.parts[: 2 * self.names.index(ANSWER) + 1]).rstrip(" ")

    def example(self, values: Shot) -> str:
        """The whole template, filled, answer included."""
        return self._fill(values, self.parts)

    def answer(self, values: Shot) -> str:
        """The template from its answer on, filled, without spaces around: what an assistant says in a chat."""
        return self._fill(values, ("", *self.parts[2 * self.names.index(ANSWER) + 1 :])).strip()

    def _fill(self, values: Shot, parts: Sequence[str]) -> str:
        filled = []
        for place, part in enumerate(parts):
            if place % 2 == 0:
                filled.append(part)
            elif part in values:
                filled.append(values[part])
            else:
                raise UsageError(
                    f"the template asks for {{{part}}}.{closest(part, values)} There is: {', '.join(values)}"
                )
        return "".join(filled)


def parse_shot(text: str) -> dict[str, str]:
    """Read "input => output". Raises UsageError where the arrow is missing or a side is empty."""
    left, arrow, right = text.rpartition("=>")
    if not arrow or not left.strip() or not right.strip():
        raise UsageError(
            f"shot {text!r} is not of the form 'input => output', as in 'this movie is great! => positive'"
        )
    return {"input": left.strip(), ANSWER: right.strip()}


def few_shot(template: Template, shots: Sequence[Shot], values: Shot, separator: str = SEPARATOR) -> Prompt:
    """The examples, then the question, each apart from the next by `separator`."""
    texts = [template.example(shot) for shot in shots]
    return Prompt(separator.join([*texts, template.question(values)]), len(texts))
