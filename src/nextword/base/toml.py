"""Settings as TOML: reading, writing, and setting single keys by name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import read_regular

_MOST_BYTES = 1 << 24


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises UsageError if it cannot be read."""
    try:
        return tomllib.loads(read_regular(path, _MOST_BYTES).decode("utf-8-sig"))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None


def to_toml(table: Mapping[str, Any]) -> str:
    """Plain data as TOML, with tables after values. None is left out, since TOML has no null."""
    return "\n".join(_lines(table, "")).strip() + "\n"


def _lines(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield f"\n[{prefix}{key}]"
            yield from _lines(value, f"{prefix}{key}.")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)  # ints and floats, infinities and NaN included, as Python writes them


def set_values(table: dict[str, Any], assignments: Iterable[str]) -> None:
    """Set each "section.key=value" in `table`. A value that is not TOML is taken as text, so text needs no quotes.

    Raises UsageError for an assignment without a key.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *sections, key = name.strip().split(".")
        if not equals or not key:
            raise UsageError(f"--set {assignment}: give section.key=value, such as --set train.learning_rate=3e-4")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {assignment}: {section} is a value, not a section")
        try:
            inner[key] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            inner[key] = text.strip()
