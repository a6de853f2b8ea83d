"""A typed reader of config.json. Files are not trusted: every value is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..base import UsageError
from ..spec import MOST

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Config:
    """Typed look-ups in a configuration, each with a default or an error that names the key."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values, self.what = values, what

    def count(self, key: str, default: int | None = None, most: int = MOST, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise UsageError(f"{self.what} has no {key!r}, which the model's shape needs")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite positive number."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str) -> float | None:
        """A finite positive number, or None if missing."""
        value = self.values.get(key)
        return None if value is None else self._positive(key, value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite positive numbers; () if missing."""
        values = self.values.get(key)
        if not isinstance(values, list | None):
            raise UsageError(f"{self.what}: {key} is {values!r}; it takes a list of numbers")
        return tuple(self._positive(key, value) for value in values or ())

    def _positive(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes true or false")
        return value

    def activation(self, key: str, default: str) -> str:
        """ModelSpec's name of a transformers activation."""
        value = self.values.get(key) or default
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise UsageError(f"{self.what}: activation {value!r} is not known. Known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def table(self, key: str) -> Config | None:
        """An object inside the configuration."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.what}: {key} is {value!r}; it takes an object")
        return Config(value, f"{self.what}, {key}")
