"""Checks of arguments: the right type and range, or a UsageError that names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ..base import UsageError, printable
from ..base.errors import closest

SHOWN = 60  # characters of a wrong value
_REAL: Any = Real  # as Any: for mypy no number of Python's is one of these
_INTEGRAL: Any = Integral


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float. Raises UsageError unless it is a finite number from `low` to `high`."""
    if not isinstance(value, _REAL) or isinstance(value, bool) or not _finite(value) or not low <= value <= high:
        least = f" of at least {low}" if low > -math.inf else ""
        bounds = f"number from {low} to {high}" if high < math.inf else f"finite number{least}"
        raise UsageError(f"{name} is {shown(value)}; it takes a {bounds}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int. Raises UsageError unless it is a whole number from `low` to `high`."""
    if (
        not isinstance(value, _INTEGRAL)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"{name} is {shown(value)}; it takes a whole number {bounds}")
    return int(value)


def known(settings: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError for the first of `settings` that is not among `names`, with the nearest of them."""
    names = list(names)
    for setting in settings:
        if setting not in names:
            raise UsageError(f"unknown setting {setting!r}.{closest(setting, names)} Settings: {', '.join(names)}")


def shown(value: Any) -> str:
    """A wrong value as an error message shows it, with its type if that is not obvious."""
    if isinstance(value, Real):
        return printable(str(value), SHOWN)
    return f"{printable(repr(value), SHOWN)} ({type(value).__name__})" if value is not None else "None"


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
