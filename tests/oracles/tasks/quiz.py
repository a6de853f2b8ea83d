"""Lines of the BSD quiz game, `category:category`, and the answers that its patterns accept.

`a|b` are alternatives, `{a}` may be left out, `[a|b]` holds alternatives together; an accent is struck over its letter
with a backspace. All of it is explained in the manual page quiz(6).
"""

import re
import unicodedata

STRUCK = {"'": "\u0301", "^": "\u0302", "~": "\u0303", ",": "\u0327", "°": "\u030a"}


def compose(line: str) -> str:
    """A line with each letter that is struck over by an accent, in either order, as one character."""

    def letter(struck: re.Match[str]) -> str:
        first, second = struck[0][0], struck[0][2]
        base, mark = (first, second) if first.isalpha() else (second, first)
        return "ø" if mark == "/" else unicodedata.normalize("NFC", base + STRUCK[mark])

    return re.sub(".\b.", letter, line)


def alternatives(pattern: str) -> list[list[str]]:
    """The texts that a category accepts, a list for each alternative at its top.

    >>> alternatives("P{'}yongyang")
    [["P'yongyang", 'Pyongyang']]
    >>> alternatives("Rom[e|a]|City")
    [['Rome', 'Roma'], ['City']]
    """
    found, end = _alternatives(pattern, 0)
    if end != len(pattern):
        raise ValueError(f"{pattern!r} closes a bracket that it never opened")
    return found


def expand(pattern: str) -> list[str]:
    """All texts that a category accepts, each once, as it lists them."""
    texts = [re.sub(" +", " ", text).strip() for accepted in alternatives(pattern) for text in accepted]
    return list(dict.fromkeys(text for text in texts if text))


def fullest(pattern: str) -> str:
    """The first alternative with all that may be left out: how a question names its subject."""
    return max(alternatives(pattern)[0], key=len).strip()


def _alternatives(pattern: str, at: int) -> tuple[list[list[str]], int]:
    """The alternatives from position `at` up to a closing bracket or the end, and where that is."""
    found = [[""]]
    while at < len(pattern) and pattern[at] not in "}]":
        sign = pattern[at]
        if sign == "|":
            found.append([""])
        elif sign in "{[":
            inner, at = _alternatives(pattern, at + 1)
            tails = [text for accepted in inner for text in accepted] + ([""] if sign == "{" else [])
            found[-1] = [head + tail for head in found[-1] for tail in tails]
        else:
            found[-1] = [head + sign for head in found[-1]]
        at += 1
    return found, at
