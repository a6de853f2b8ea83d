"""Figure: a number with its formula and source; the formula shown is the one computed."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import CodeType
from typing import Any

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
}
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Figure:
    """One number of a plan: its unit, its formula over `inputs`, and the source of the formula."""

    name: str
    value: float
    unit: str  # "bytes", "parameters", "FLOPs", "s", "tokens/s", ...
    formula: str
    inputs: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def filled(self) -> str:
        """The formula with values: "2 × 32 × 8 × 128 × 2"."""

        def put(match: re.Match[str]) -> str:
            name = match[0]
            return _short(self.inputs[name]) if name in self.inputs else name

        return _readable(_NAME.sub(put, self.formula))

    def symbolic(self) -> str:
        """The formula with names, typeset."""
        return _readable(self.formula)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "formula": self.formula,
            "filled": self.filled(),
            "inputs": dict(self.inputs),
            "source": self.source,
        }


def figure(name: str, unit: str, formula: str, source: str = "", **inputs: float) -> Figure:
    """Evaluate `formula`, Python arithmetic over `inputs` with min, max, exp, log, sqrt and ceil."""
    value = eval(_compiled(formula), {"__builtins__": {}}, {**_FUNCTIONS, **inputs})
    return Figure(name, value, unit, formula, inputs, source)


@dataclass(frozen=True)
class Parts:
    """Figures that sum to `total`."""

    parts: tuple[Figure, ...]

    @property
    def total(self) -> float:
        return sum(part.value for part in self.parts)

    def part(self, name: str) -> float:
        """The sum of the parts with that name."""
        return sum(part.value for part in self.parts if part.name == name)


def plain(value: Any) -> Any:
    """Plain data for JSON: a dataclass is an object of its fields, properties and `units`; a figure has its formula."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not is_dataclass(value):
        return value
    names = [field.name for field in fields(value)]
    names += [name for name, _ in inspect.getmembers(type(value), lambda member: isinstance(member, property))]
    units = {"units": value.units} if hasattr(value, "units") else {}
    return {name: plain(getattr(value, name)) for name in names} | units


@cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")


def _readable(formula: str) -> str:
    return formula.replace("**", "^").replace(" * ", " × ").replace("*", "×").replace(" - ", " − ")


def _short(value: float) -> str:
    if isinstance(value, int) or (abs(value) < 1e12 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:.6g}"
