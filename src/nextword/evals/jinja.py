"""Jinja templates from task files, which are hostile: they can read their row, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ..base import UsageError
from ..base.errors import closest

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def fill(source: str, row: Mapping[str, Any]) -> str:
    """The template `source` filled from `row`.

    Raises UsageError for a template that is not one, asks for a column that is not there, tries to run code, or makes
    more than a million characters (beside those of the row) or takes too many steps.
    """
    from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

    from .jinja_sandbox import TooMuch, allowance

    try:
        template = _compiled(source)
        allowed = allowance(source, row)
        with allowed:
            size, parts = 0, []
            for part in template.generate(dict(row)):
                size += len(part)
                if size > allowed.longest:
                    raise TooMuch(f"more than {allowed.longest:,} characters")
                parts.append(part)
        return "".join(parts)
    except TooMuch as error:
        raise UsageError(f"the template {_short(source)} would make too much of a row ({error})") from None
    except SecurityError as error:
        raise UsageError(f"the template {_short(source)} tries to run code ({error}), which is not done") from None
    except UndefinedError as error:
        missing = re.match(r"'(\w+)' is undefined", str(error))
        near = closest(missing[1], row) if missing else ""
        raise UsageError(
            f"the template {_short(source)} asks for what a row does not have ({_line(error)}).{near}"
            f" There is: {', '.join(row)}"
        ) from None
    except TemplateError as error:
        raise UsageError(f"the template {_short(source)} is not valid Jinja ({_line(error)})") from None
    except (
        TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, RecursionError, MemoryError,
        SyntaxError, re.error,
    ) as error:  # fmt: skip
        raise UsageError(
            f"the template {_short(source)} fails on a row ({type(error).__name__}: {_line(error)})"
        ) from None


def literal(text: str) -> str:
    """A template that says `text` as it stands, whatever looks like Jinja in it."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def last_words(source: str) -> str:
    """What a template says behind its last gap, without the white space there; nothing where it has no gap."""
    parts = re.split(r"\}\}|%\}|#\}", source)
    return parts[-1].lstrip() if len(parts) > 1 else ""


def _line(error: BaseException) -> str:
    """What is wrong, on one line of bounded length: a message can hold the row."""
    return " ".join(str(error).split())[:200]


def _short(source: str) -> str:
    return repr(source if len(source) <= 60 else source[:57] + "...")


@cache
def _environment() -> Environment:
    from .jinja_sandbox import Sandbox

    return Sandbox()


@cache
def _compiled(source: str) -> Template:
    return _environment().from_string(source)
