"""Dataclasses that validate their fields, from annotations and `Annotated[..., Within()]`.

Values from the command line, JSON files and Python callers thus meet the same limits.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .display import printable
from .errors import UsageError, closest

Dataclass = TypeVar("Dataclass")
_FINITE = 1e40  # far beyond any plan, as in units; keeps arithmetic finite


@dataclass(frozen=True)
class Within:
    """Limits of a number: from `least` to `most`, strictly `above` and `below`; `finite` unless turned off."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    finite: bool = True

    def holds(self, value: Any) -> bool:
        """Whether `value` is finite and lies within."""
        return not self.finite or (
            abs(value) <= _FINITE
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f" from {self.least:,} to {self.most:,}"
        words = {"of at least": self.least, "of at most": self.most, "above": self.above, "below": self.below}
        limits = [f"{word} {limit:,}" for word, limit in words.items() if limit is not None]
        return f" {' and '.join(limits)}" if limits else ""


class FieldError(UsageError):
    """A field with an invalid value."""

    def __init__(self, name: str, value: Any, wanted: str) -> None:
        self.name, self.value, self.wanted = name, value, wanted
        super().__init__(self.said_as(name))

    def said_as(self, name: str) -> str:
        """The message for the field under `name`, such as the option that set it."""
        return f"{name} {printable(repr(self.value), 60)}: give {self.wanted}"


def check_fields(instance: Any) -> None:
    """Check every field of a dataclass instance; used as `__post_init__`. Raises FieldError."""
    owner: type = type(instance)
    for name in _hints(owner):
        check_field(owner, name, getattr(instance, name))


def check_field(owner: type, name: str, value: Any) -> None:
    """Raise FieldError unless `value` is valid for the field `name` of the dataclass `owner`."""
    if name not in _hints(owner):
        raise UsageError(f"unknown setting {printable(name, 40)!r}")
    if wanted := _wanted(value, _hints(owner)[name]):
        raise FieldError(name, value, wanted)


def from_plain(kind: type[Dataclass], data: Any, prefix: str = "") -> Dataclass:
    """Build the dataclass `kind` from plain data, with nested dataclasses, checking every field.

    A list from JSON or TOML becomes a tuple for a tuple field. `prefix`, such as "train.", precedes field names in
    messages. Raises UsageError that names the field, and the closest known name for an unknown one.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{prefix.rstrip('.') or kind.__name__} is a {type(data).__name__}, not an object")
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [str(name) for name in data if name not in known]:
        name = printable(unknown[0], 40)
        near = closest(prefix + name, [*(prefix + field for field in known), *dotted_names(kind, prefix)], 1)
        raise UsageError(f"unknown setting {prefix + name!r}.{near}".removesuffix("."))
    if missing := [name for name, field in known.items() if name not in data and _needed(field)]:
        raise UsageError(f"{prefix}{missing[0]} is missing")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {name: _from_plain_field(hints[name], value, prefix + name) for name, value in data.items()}
    try:
        made = kind(**values)
        check_fields(made)
    except FieldError as error:
        raise FieldError(prefix + error.name, error.value, error.wanted) from None
    return made


def _from_plain_field(hint: Any, value: Any, name: str) -> Any:
    """The value of one field: nested dataclasses are built, lists become tuples, and ints floats as annotated."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType, tuple) else (hint,)
    inner = next((one for one in kinds if dataclasses.is_dataclass(one)), None)
    if isinstance(value, list):
        return tuple(_from_plain_field(inner, item, name) if inner else item for item in value)
    if inner is not None and isinstance(value, Mapping):
        return from_plain(inner, value, f"{name}.")  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _FINITE:
        return float(value)
    return value


def dotted_names(kind: type, prefix: str = "") -> Iterator[str]:
    """The names of all fields of a dataclass and its nested dataclasses, such as train.learning_rate."""
    for name, hint in _hints(kind).items():
        inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(inner):
            yield from dotted_names(inner, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name


def description(kind: type, name: str) -> str:
    """A field's description: the text in its annotation, as in `Annotated[int, Within(least=0), "steps"]`."""
    hint = _hints(kind)[name]
    return next((item for item in get_args(hint)[1:] if isinstance(item, str)), "")


def finite(value: Any) -> Any:
    """Plain data for JSON, which lacks infinities and NaN: these become None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def rebuilt(hint: Any, data: Any) -> Any:
    """Rebuild a value of type `hint` from its JSON form, the inverse of `dataclasses.asdict`.

    Unknown fields are ignored. Raises TypeError or ValueError for a missing or malformed field.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return rebuilt(args[0], data)
    if origin in (Union, types.UnionType):
        kind = next((each for each in args if each is not type(None)), None)
        return None if data is None else rebuilt(kind, data)
    if origin is tuple:
        kinds = args[:1] * len(data) if args[-1] is Ellipsis else args
        return tuple(rebuilt(kind, each) for kind, each in zip(kinds, data, strict=True))
    if isinstance(data, Mapping) and dataclasses.is_dataclass(hint):
        known = _hints(hint)  # type: ignore[arg-type]
        return hint(**{name: rebuilt(known[name], value) for name, value in data.items() if name in known})  # type: ignore[operator]
    if isinstance(data, Mapping) and origin is not None and len(args) == 2:
        return {name: rebuilt(args[1], value) for name, value in data.items()}
    return data


@cache
def _hints(owner: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, by name."""
    found = get_type_hints(owner, include_extras=True)
    return {name: hint for name, hint in found.items() if name in owner.__dataclass_fields__}  # type: ignore[attr-defined]


def _wanted(value: Any, hint: Any) -> str:
    """A description of what `hint` expects in place of `value`; "" if `value` is valid."""
    limits = Within()
    if get_origin(hint) is Annotated:
        hint, *metadata = get_args(hint)
        limits = next((item for item in metadata if isinstance(item, Within)), limits)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return ""
    if origin in (Union, types.UnionType):
        return _wanted_of_several(value, [Annotated[each, limits] for each in args])
    if origin is Literal:
        return "" if isinstance(value, str) and value in args else f"one of {', '.join(args)}"
    if origin is tuple:
        return _wanted_of_a_tuple(value, args)
    if origin is dict and isinstance(value, dict):
        return next((f"{one} for each" for one in (_wanted(each, args[1]) for each in value.values()) if one), "")
    if hint in (int, float):
        kind: Any = Integral if hint is int else Real
        right = isinstance(value, kind) and not isinstance(value, bool) and limits.holds(value)  # a bool is an int
        return "" if right else f"{'a whole' if hint is int else 'a finite'} number{limits}"
    return "" if isinstance(value, origin or hint) else _called(origin or hint)


def _wanted_of_several(value: Any, kinds: list[Any]) -> str:
    found = {kind: _wanted(value, kind) for kind in kinds}
    if "" in found.values():
        return ""
    return " or ".join(wanted for kind, wanted in found.items() if get_args(kind)[0] is not type(None))


def _wanted_of_a_tuple(value: Any, kinds: tuple[Any, ...]) -> str:
    several = kinds[-1] is Ellipsis
    if not isinstance(value, tuple) or (not several and len(value) != len(kinds)):
        return "a list" if several else f"a list of {len(kinds)}"
    wanted = [
        _wanted(each, kind) for each, kind in zip(value, kinds[:1] * len(value) if several else kinds, strict=True)
    ]
    return next((f"a list, each {one}" for one in wanted if one), "")


def _called(kind: type) -> str:
    known = {bool: "true or false", str: "text", type(None): "nothing", dict: "an object"}
    return known.get(kind, "a table of settings" if dataclasses.is_dataclass(kind) else f"a {kind.__name__}")


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
