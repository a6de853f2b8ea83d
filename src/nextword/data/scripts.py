"""Counts the letters of a text by script: Latin, Cyrillic, Han, ..."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np

_ASCII = bytes(range(128))
_NO_ASCII_LETTERS = bytes(code for code in range(256) if not (code < 128 and chr(code).isalpha()))
_UNUSUAL = {"CJK": "Han", "NO-BREAK": "Other", "MODIFIER": "Other", "MASCULINE": "Latin", "FEMININE": "Latin",
            "MICRO": "Greek"}  # fmt: skip
_WIDTHS = ("FULLWIDTH", "HALFWIDTH", "MATHEMATICAL")


def count_scripts(texts: Iterable[bytes]) -> Counter[str]:
    """The number of letters by script, in texts in UTF-8."""
    text = b"".join(texts)
    counts = Counter(Latin=len(text.translate(None, _NO_ASCII_LETTERS)))
    others = b"" if text.isascii() else text.translate(None, _ASCII)  # no part of a longer character is an ASCII byte
    numbers = np.bincount(np.frombuffer(others.decode().encode("utf-32-le"), "<u4"))
    for code in np.flatnonzero(numbers).tolist():
        if chr(code).isalpha():
            counts[script_of(chr(code))] += int(numbers[code])
    return +counts


def script_of(letter: str) -> str:
    """A letter's script, which its name in Unicode begins with: "CYRILLIC SMALL LETTER A"."""
    words = unicodedata.name(letter, "OTHER").split()
    first = words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]
    return _UNUSUAL.get(first.split("-")[0], first.split("-")[0].capitalize())
