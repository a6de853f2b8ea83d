"""Numbers with units as people type them ("1B", "2 TB", "3 days", "$500"), and back.

Decimal prefixes are powers of ten (GB = 1e9 bytes), binary ones powers of two (GiB = 2^30), as in IEC 80000-13.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from .errors import UsageError

_NUMBER = re.compile(r"([+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(.*)", re.IGNORECASE | re.DOTALL)
_LARGEST = 1e40  # far beyond any plan; keeps arithmetic finite

_COUNTS = {"": 1.0, "k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9, "g": 1e9,
           "billion": 1e9, "t": 1e12, "tn": 1e12, "trillion": 1e12}  # fmt: skip
_BYTES = {"": 1.0, "b": 1.0, "byte": 1.0, "bytes": 1.0}
for _power, _prefix in enumerate("kmgtp", 1):
    for _ending in ("", "b"):
        _BYTES |= {_prefix + _ending: 1000.0**_power, f"{_prefix}i{_ending}": 1024.0**_power}
_DAY = 86_400.0
_SECONDS = {
    unit: seconds
    for seconds, units in (
        (1e-3, "ms"),
        (1.0, "s sec secs second seconds"),
        (60.0, "m min mins minute minutes"),
        (3600.0, "h hr hrs hour hours"),
        (_DAY, "d day days"),
        (7 * _DAY, "w week weeks"),
        (365.25 * _DAY, "y year years"),
    )
    for unit in units.split()
}
_FLOPS = {"": 1.0} | {
    prefix + ending: 1000.0**power
    for power, prefix in enumerate(("", "k", "m", "g", "t", "p", "e", "z", "y"))
    for ending in ("flop", "flops")
} | {"pf-day": 1e15 * _DAY, "pf-days": 1e15 * _DAY, "pfdays": 1e15 * _DAY}  # fmt: skip


def parse_count(text: str, what: str = "count") -> float:
    """A count of parameters, tokens or devices: "1B", "1.3e9", "7b", "350M". Raises UsageError unless above zero."""
    cleaned = re.sub(r"\s*(params?|parameters?|tokens?)\s*$", "", text.strip(), flags=re.IGNORECASE)
    return _quantity(cleaned, text, what, _COUNTS, "1B, 7b, 350M, 20k, 1.3e9")


def parse_whole(text: str, what: str, least: int, most: int) -> int:
    """A whole number within limits: "8192", "8k", "1e9", "1_000"."""
    number = 0.0 if text.strip() == "0" else parse_count(text, what)
    if number != int(number) or not least <= number <= most:
        raise UsageError(f"{what} {text.strip()}: give a whole number from {least:,} to {most:,}")
    return int(number)


def parse_bytes(text: str, what: str = "size") -> float:
    """Bytes: "80GB", "24 GiB", "2 TB", "512m"."""
    return _quantity(text, text, what, _BYTES, "80GB, 24 GiB, 2 TB, 5e9")


def parse_seconds(text: str, what: str = "time", unit: str = "") -> float:
    """Seconds: "3 days", "30min", "2h"; a bare number counts `unit`s, and is an error without `unit`."""
    units = _SECONDS | ({"": _SECONDS[unit]} if unit else {})
    return _quantity(text, text, what, units, "90 s, 30 min, 2h, 3 days, 1 week")


def parse_money(text: str, what: str = "price") -> float:
    """An amount of money: "$500", "500", "2.5 USD", "1.2k". The currency is whatever the user pays in."""
    cleaned = re.sub(r"^\s*(usd|eur|[$€£])|\s*(usd|eur|dollars?|[$€£])\s*$", "", text.strip(), flags=re.IGNORECASE)
    return _quantity(cleaned, text, what, _COUNTS, "$500, 500, 2.5 USD, 1.2k")


def parse_flops(text: str, what: str = "FLOPs") -> float:
    """Floating-point operations: "1e21", "5 EFLOP", "10 PF-days" (Kaplan et al.'s unit: 8.64e19)."""
    return _quantity(text, text, what, _FLOPS, "1e21, 300 EFLOP, 10 PF-days")


def parse_flop_rate(text: str, what: str = "speed") -> float:
    """FLOP/s: "989 TFLOP/s", "989TFLOPS", "1.5 PFLOP/s", "3e12"."""
    cleaned = re.sub(r"\s*/\s*s(ec(ond)?)?\s*$", "", text, flags=re.IGNORECASE)
    return _quantity(cleaned, text, what, _FLOPS, "989 TFLOP/s, 40 GFLOPS, 3e12")


def parse_bandwidth(text: str, what: str = "bandwidth") -> float:
    """Bytes a second: "3.35 TB/s", "900GB/s"."""
    cleaned = re.sub(r"\s*(/\s*s(ec(ond)?)?|ps)\s*$", "", text, flags=re.IGNORECASE)
    return _quantity(cleaned, text, what, _BYTES, "3.35 TB/s, 936GB/s, 2e12")


def _quantity(cleaned: str, given: str, what: str, units: Mapping[str, float], forms: str) -> float:
    match = _NUMBER.fullmatch(cleaned.strip())
    unit = match[2].strip().lower() if match else ""
    if match is None or unit not in units:
        raise UsageError(f"{what} {given!r} is not understood. Accepted forms: {forms}")
    value = float(match[1].replace(",", "").replace("_", "")) * units[unit]
    if not 0 < value <= _LARGEST:
        limit = "above zero" if value <= 0 else f"at most {_LARGEST:g}"
        raise UsageError(f"{what} {given!r} must be {limit}. Accepted forms: {forms}")
    return value


def format_count(value: float) -> str:
    """7.24 B, 135 M, 65.0 k, 1,234, 97."""
    if 1000 <= abs(value) < 9999.5:
        return f"{value:,.0f}"
    return _scaled(value, (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)), "", 1e3)


def compact_count(value: float) -> str:
    """For names of files and of rows: 7.24B, 135M, 65.0k, 1234."""
    return format_count(value).replace(" ", "").replace(",", "")


def format_bytes(value: float) -> str:
    """Decimal units: 16.06 GB, 98.36 MB, 4.00 kB, 12 bytes."""
    return _scaled(value, (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "bytes", 1.0)


def format_flops(value: float) -> str:
    """3.14e+23 FLOPs, or with a common prefix: 5.17 MFLOPs."""
    if value >= 1e15 or value < 1e3:
        return f"{value:.3g} FLOPs"
    return _scaled(value, (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6), ("kFLOPs", 1e3)), "", 1)


def format_seconds(value: float) -> str:
    """850 µs, 12.5 s, 31 min, 5.2 h, 3.5 days, 12 years."""
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0 s"
    steps = (("years", 365.25 * _DAY, 2), ("days", _DAY, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1),
             ("ms", 1e-3, 1), ("µs", 1e-6, 0))  # fmt: skip
    for unit, size, least in steps:
        if value >= least * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.1e} s"


def format_money(value: float) -> str:
    """$1,234 or $0.42."""
    if value >= 1e7:
        return f"${format_count(value)}"
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"


def format_rate(value: float) -> str:
    """Tokens a second: 0.42, 64.8, 1,234, 30.7 k."""
    return format_count(value) if value >= 1000 else f"{value:.3g}"


def format_quantity(value: float, unit: str) -> str:
    """A value with its unit, about three digits."""
    formats: dict[str, Callable[[float], str]] = {
        "bytes": format_bytes, "FLOPs": format_flops, "s": format_seconds, "$": format_money,
        "parameters": format_count, "tokens": format_count,
    }  # fmt: skip
    if unit in formats:
        return formats[unit](value)
    return f"{format_rate(value)} tokens/s" if unit == "tokens/s" else f"{value:,.4g} {unit}".rstrip()


def _scaled(value: float, steps: tuple[tuple[str, float], ...], unit: str, least: float) -> str:
    sign, size = ("-" if value < 0 else ""), abs(value)
    for name, step in steps:
        if size >= step * 0.9995:  # what would round to 1,000 of the next smaller unit
            return f"{sign}{_three(size / step)} {name}"
    shown = f"{size:,.0f}" if size >= least or size == int(size) else f"{size:.3g}"
    return f"{sign}{shown} {unit}".rstrip()


def _three(value: float) -> str:
    """About three digits: 1.23, 12.3, 123, 1,234."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
