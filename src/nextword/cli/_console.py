"""Where commands print: rich consoles, JSON, and what the terminal can show."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from ..base import printable
from ..base.fields import finite

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # left unescaped by json.dumps
WIDTH_OF_FILES = 100  # characters; for output that goes to a file or a pipe


@cache
def output() -> Console:
    """The console on standard output. rich obeys NO_COLOR, FORCE_COLOR, COLUMNS and TERM."""
    return _console(sys.stdout)


@cache
def messages() -> Console:
    """The console on standard error: progress, notes, questions."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        """Escapes control characters other than rich's own.

        A closed pipe ends the command as everywhere else, not with rich's exit code of 1.
        """

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text, keep="\n"), style, control)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    fixed = None if is_terminal(stream) or "COLUMNS" in os.environ else WIDTH_OF_FILES
    return Plain(file=stream, width=fixed, highlight=False, markup=False, emoji=False, soft_wrap=False)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def as_shown(text: str, stream: TextIO | None = None) -> str:
    """`text` made safe for `stream` (default: standard output): a terminal must not interpret it.

    Use it to print text from a file, a model or a command line without a console.
    """
    stream = sys.stdout if stream is None else stream
    return printable(text, keep="\n\t") if is_terminal(stream) else text


def draws_unicode(console: Console) -> bool:
    """Whether block characters can be printed; otherwise pictures are drawn in ASCII."""
    return console.encoding.lower().replace("-", "").startswith("utf")


def emit_json(value: Any) -> None:
    """Print one JSON document. Infinities and NaN, which JSON lacks, become null."""
    text = json.dumps(finite(value), ensure_ascii=False, indent=2)
    # control characters become escapes, which parse as the same text
    sys.stdout.write(_OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")
