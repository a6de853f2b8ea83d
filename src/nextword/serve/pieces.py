"""The text of one choice as it arrives, and an entry for each token with the part of the text that it wrote."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..engine import Token
from ..text import Tokenizer

LEAST = -9999.0  # a log probability in place of minus infinity, which JSON lacks
_REPLACEMENT = "\ufffd"  # what the engine's decoder writes for bytes that are not UTF-8


@dataclass
class Entry:
    """A token with its part of the text.

    `data`: its bytes as far as they are in the text. `piece`: the characters that it completed.
    """

    token: Token
    data: bytearray = field(default_factory=bytearray)
    piece: str = ""


class Pieces:
    """Follows the tokens of one choice. Bytes that are not UTF-8 are left out of the text and of the entries.

    A text is given out as soon as the engine does so: not while it may be the beginning of a stop string. Entries
    follow the text: joined, their pieces are the text given out so far, and their bytes its UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail: list[tuple[Entry, int]] = []  # bytes of an incomplete character
        self._waiting: deque[Entry] = deque()
        self._given = self._left = 0  # bytes: of the text given out, and of that without the entries given out

    def push(self, token: Token) -> tuple[str, list[Entry]]:
        """The text that can be given out now, and the entries it covers."""
        text = token.text.replace(_REPLACEMENT, "")
        self._left += len(text.encode())
        hidden = token.id in self._tokenizer.special.control
        entry = Entry(token)
        self._waiting.append(entry)
        self._decode(entry, b"" if hidden else self._tokenizer.token_bytes(token.id))
        return text, self._rest() if token.finish else self._covered()

    def _decode(self, entry: Entry, data: bytes) -> None:
        self._tail += [(entry, byte) for byte in data]
        while self._tail:
            raw = bytes(byte for _, byte in self._tail)
            try:
                raw.decode()
                good = end = len(raw)
            except UnicodeDecodeError as error:
                good, end = error.start, error.end
                if error.reason == "unexpected end of data":
                    end = good
            self._keep(raw[:good])
            self._tail = self._tail[end:]
            if end == good:  # nothing, or the beginning of a character, is left
                return

    def _keep(self, raw: bytes) -> None:
        """Give whole characters to the tokens that their bytes are from; one is a piece of the token that ends it."""
        start = 0
        for character in raw.decode():
            end = start + len(character.encode())
            if character != _REPLACEMENT:
                for owner, byte in self._tail[start:end]:
                    owner.data.append(byte)
                self._tail[end - 1][0].piece += character
            start = end

    def _covered(self) -> list[Entry]:
        """The entries whose whole text has been given out."""
        entries: list[Entry] = []
        unsettled = self._tail[0][0] if self._tail else None
        while self._waiting and self._waiting[0] is not unsettled and len(self._waiting[0].data) <= self._left:
            entries.append(self._waiting.popleft())
            self._left -= len(entries[-1].data)
        return entries

    def _rest(self) -> list[Entry]:
        """All entries that are left; of those behind the end of the text, the part before it."""
        entries = list(self._waiting)
        self._waiting.clear()
        pieces = self._left
        for entry in entries:
            del entry.data[max(0, self._left) :]
            self._left -= len(entry.data)
            written = entry.piece.encode()[: max(0, pieces)]
            entry.piece, pieces = written.decode(errors="ignore"), pieces - len(written)
        return entries


def name_of(tokenizer: Tokenizer, id: int) -> str:
    r"""A token's own text; "bytes:\xf0\x9f" for a part of a character."""
    data = tokenizer.token_bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def shown_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> list[dict[str, Any]]:
    """Each token's id and piece: its text, or its bytes if they are a part of a character; `control` marks commands."""
    control = tokenizer.special.control
    return [
        {"id": id, "piece": _piece(tokenizer.token_bytes(id)), **({"control": True} if id in control else {})}
        for id in ids
    ]


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def candidates(token: Token) -> list[tuple[int, float]]:
    """The likeliest tokens in the place of `token` with ln p under the model, the likeliest first."""
    return [
        (other.id, token.logprob if other.id == token.id else logarithm(other.probability))
        for other in token.alternatives
    ]


def logarithm(probability: float) -> float:
    return max(LEAST, math.log(probability)) if probability > 0 else LEAST
