"""Jinja templates from task files, which are hostile: they can read their row, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ..base import UsageError
from ..base.errors import closest

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_WIDENING = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate")
LONGEST = 1_000_000  # characters that a template may make of a row


def fill(source: str, row: Mapping[str, Any]) -> str:
    """The template `source` filled from `row`.

    Raises UsageError for a template that is not one, asks for a column that is not there, tries to run code, or makes
    more than a million characters.
    """
    from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

    try:
        size, parts = 0, []
        for part in _compiled(source).generate(dict(row)):
            size += len(part)
            if size > LONGEST:
                raise UsageError(f"the template {_short(source)} makes more than {LONGEST:,} characters of a row")
            parts.append(part)
        return "".join(parts)
    except SecurityError as error:
        raise UsageError(f"the template {_short(source)} tries to run code ({error}), which is not done") from None
    except UndefinedError as error:
        missing = re.match(r"'(\w+)' is undefined", str(error))
        near = closest(missing[1], row) if missing else ""
        raise UsageError(
            f"the template {_short(source)} asks for what a row does not have ({error}).{near}"
            f" There is: {', '.join(row)}"
        ) from None
    except TemplateError as error:
        raise UsageError(f"the template {_short(source)} is not valid Jinja ({error})") from None
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, RecursionError) as error:
        raise UsageError(f"the template {_short(source)} fails on a row ({type(error).__name__}: {error})") from None


def _short(source: str) -> str:
    return repr(source if len(source) <= 60 else source[:57] + "...")


@cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Without powers and products of texts, with which a few characters could fill the memory."""

        intercepted_binops = frozenset({"**", "*", "%"})

        def is_safe_attribute(self, thing: Any, name: str, value: Any) -> bool:
            return name not in _WIDENING and super().is_safe_attribute(thing, name, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(side, int | float) and abs(side) < 1e6 for side in (left, right))
            if operator == "%" and isinstance(left, str):
                raise ValueError("% with a text is not done; use {{ }}")
            if not numbers or (operator == "**" and abs(right) > 64):
                raise ValueError(f"{operator} is taken of small numbers only")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _replace
    for risky in ("center", "format", "indent", "wordwrap", "pprint"):
        environment.filters.pop(risky, None)
    return environment


def _replace(text: str, pattern: str, by: str, count: int = 0) -> str:
    if len(str(text)) > LONGEST // 10:
        raise ValueError("regex_replace of a text that long")
    return re.sub(pattern, by, str(text), count=count)


@cache
def _compiled(source: str) -> Template:
    return _environment().from_string(source)
