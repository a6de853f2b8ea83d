"""The rooms that a template may use: no code, and a bounded number of steps and characters.

Jinja's own sandbox keeps a template from Python's inside. It does not keep it from filling the memory: a loop that
doubles a text does that in thirty turns. Here every step, text and call is counted against an allowance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from types import BuiltinMethodType
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST = 1_000_000  # characters that a template may make of a row, beside what the row itself has
STEPS = 300_000  # turns of loops, calls and filters
_WIDEST = 1000  # characters that a text may be padded or indented by
_EACH = "each turn"  # the filter that counts turns; no template can name it
_LEFT_OUT = ("pprint", "random", "urlize", "xmlattr", "filesizeformat", "format")
_WIDE_FILTERS = ("batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
_WIDE_METHODS = ("center", "expandtabs", "ljust", "rjust", "zfill")
_WIDE_FORMAT = re.compile(r":[^{}]*(?:\d{4}|\{)")  # {:9999}, {:{width}}
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")  # %9999d, %*d


class TooMuch(ValueError):
    """A template asks for more than it is allowed to make."""


@dataclass
class Allowance:
    """What is left to one filling of a template."""

    text: int
    steps: int
    longest: int = LONGEST

    def __enter__(self) -> None:
        self._token = _ALLOWED.set(self)

    def __exit__(self, *_: object) -> None:
        _ALLOWED.reset(self._token)


_ALLOWED: ContextVar[Allowance | None] = ContextVar("allowance", default=None)


def allowance(source: str, row: Mapping[str, Any]) -> Allowance:
    """What filling `source` from `row` may use: the longer a template, the fewer its turns."""
    longest = LONGEST + 4 * measured(row, 1 << 40)
    return Allowance(longest, max(1000, min(STEPS, 30_000_000 // max(1, len(source)))), longest)


def measured(value: Any, most: int | None = None) -> int:
    """Characters and elements in `value`, as they would be written. Raises TooMuch beyond `most`."""
    most = _longest() if most is None else most
    left, size = [value], 0
    while left:
        each = left.pop()
        if isinstance(each, str | bytes):
            size += len(each)
        elif isinstance(each, Namespace):
            left.append(vars(each))
        elif isinstance(each, Mapping | list | tuple | set | frozenset):
            size += len(each)
            if size <= most:
                left.extend(each)
                left.extend(each.values() if isinstance(each, Mapping) else ())
        else:
            size += 1
        if size > most:
            raise TooMuch(f"more than {most:,} characters")
    return size


def _longest() -> int:
    allowed = _ALLOWED.get()
    return LONGEST if allowed is None else allowed.longest


def _step() -> None:
    allowed = _ALLOWED.get()
    if allowed is not None:
        allowed.steps -= 1
        if allowed.steps < 0:
            raise TooMuch("too many steps")


def _within(size: int) -> None:
    if size > _longest():
        raise TooMuch(f"more than {_longest():,} characters")


def _written(value: Any) -> Any:
    """Every value that a template writes, into the prompt or into a variable."""
    size, allowed = measured(value), _ALLOWED.get()
    if allowed is not None:
        allowed.text -= size
        if allowed.text < 0:
            raise TooMuch(f"more than {allowed.longest:,} characters")
    return value


@pass_context
def _turns(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step()
        yield value


class _Generator(CodeGenerator):
    """Compiles a ~ b so that its length is looked at."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates that read a row and write text."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"**", "*", "%", "+"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_written)
        self.filters["regex_replace"] = regex_replace
        for name in _LEFT_OUT:
            self.filters.pop(name)
        self.filters = {name: _bounded(name, call) for name, call in self.filters.items()}
        self.filters[_EACH] = _turns
        self.globals.pop("lipsum")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise TemplateSyntaxError("loops are not recursive here", loop.lineno)
            loop.iter = nodes.Filter(loop.iter, _EACH, [], [], None, None, lineno=loop.lineno)
        return tree.set_environment(self)  # type: ignore[return-value]

    def joined(self, parts: tuple[Any, ...]) -> str:
        """a ~ b ~ c"""
        measured(parts)
        return "".join(map(str, parts))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is not None and _WIDE_FORMAT.search(value.__self__):
            raise TooMuch("a format that wide")
        return made

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str | bytes):
            measured((left, right))
            if _WIDE_PERCENT.search(str(left)):
                raise TooMuch("a format that wide")
        elif operator == "+":
            measured((left, right))
        elif isinstance(left, int | float) and isinstance(right, int | float):
            if operator == "**" and (abs(right) > 64 or abs(left) > 1e6):
                raise TooMuch("powers are taken of small numbers only")
            if any(isinstance(side, int) and side.bit_length() > 2000 for side in (left, right)):
                raise TooMuch("numbers that large")
        elif operator == "*":
            thing, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                _within(max(measured(thing), 1) * times)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, *given: Any, **named: Any) -> Any:
        _step()
        measured((given, named))
        if isinstance(called, BuiltinMethodType) and not isinstance(called.__self__, type):
            given = _checked(called.__name__, called.__self__, given, named)
        made = super().call(context, called, *given, **named)
        if isinstance(made, str | bytes | list | tuple | dict):
            measured(made)
        return made


def _checked(name: str, thing: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a text's or list's own method. Raises TooMuch for those that would make it huge."""
    if name in ("to_bytes", "translate"):
        raise TooMuch(f"{name} is not done here")
    if name == "join" and len(given) == 1:
        return (_listed(given[0], len(thing)),)
    if name == "replace" and len(given) >= 2 and isinstance(thing, str):
        _within(len(thing) + thing.count(str(given[0])) * len(str(given[1])))
    if name in _WIDE_METHODS:
        _narrow(thing, (*given, *named.values()))
    return given


def _listed(values: Any, between: int) -> Any:
    """Values to be joined, as a list that is not too long."""
    if not isinstance(values, Iterable):
        return values
    found = list(values if isinstance(values, str | list | tuple | Mapping) else islice(values, _longest() + 1))
    _within(measured(found) + between * len(found))
    return found


def _narrow(thing: Any, widths: Iterable[Any]) -> None:
    for width in widths:
        if isinstance(width, int) and not isinstance(width, bool):
            if abs(width) > _WIDEST:
                raise TooMuch(f"a width of {width:,}")
            _within(measured(thing) * abs(width) // 10)


def _bounded(name: str, filtered: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its arguments and its result looked at; it keeps what Jinja has noted on it."""
    outer = hasattr(filtered, "jinja_pass_arg")  # the first argument is Jinja's own

    @wraps(filtered)
    def run(*given: Any, **named: Any) -> Any:
        _step()
        jinjas, values = given[:outer], list(given[outer:])
        if any(isinstance(value, Undefined) for value in values[:1]) and name not in ("default", "d"):
            return filtered(*given, **named)
        measured((values, named))
        if name in _WIDE_FILTERS:
            _narrow(values[0], (*values[1:], *named.values()))
        elif name == "join":
            values[0] = _listed(values[0], len(str(named.get("d", values[1] if len(values) > 1 else ""))))
        elif name == "replace" and len(values) >= 3:
            _within(len(str(values[0])) + str(values[0]).count(str(values[1])) * len(str(values[2])))
        made = filtered(*jinjas, *values, **named)
        if isinstance(made, str | list | tuple | dict):
            measured(made)
        return made

    return run


def regex_replace(text: str, pattern: str, repl: str, count: int = 0) -> str:
    """re.sub, which stops where the text grows too long."""
    _within(str(repl).count("\\") * len(text) // 10 + len(repl))
    parts, end, size = [], 0, 0
    for match in islice(re.finditer(pattern, text), count or None):
        parts += [text[end : match.start()], match.expand(repl)]
        size += len(parts[-1])
        _within(size + match.end())
        end = match.end()
    return "".join((*parts, text[end:]))
