"""The bytes of a token, from its text in the vocabulary.

Decoding needs nothing else: text is the UTF-8 decoding of its tokens' concatenated bytes, so a stream
can be decoded token by token, and a character split over tokens waits for its last byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..base import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ByteDecoding:
    """How the tokens of a vocabulary are written.

    `to_bytes` maps a token of the vocabulary to its bytes. `strips_space`: the tokenizer adds a space
    before a text, which decoding removes.
    """

    to_bytes: Callable[[str], bytes]
    strips_space: bool = False


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Character → byte, for byte-level BPE (Radford et al. 2019, GPT-2).

    Printable Latin-1 stands for itself; the other bytes take the characters from U+0100 on, in order.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def to_byte_level(text: str) -> str:
    """`text` in the alphabet of byte-level tokens."""
    characters = {byte: character for character, byte in byte_alphabet().items()}
    return "".join([characters[byte] for byte in text.encode()])


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; a token outside the alphabet is literal text."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def sentencepiece(token: str, space: str = "\u2581") -> bytes:
    """The bytes of a SentencePiece token: ▁ is a space, <0x0A> one byte."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(space, " ").encode()


def byte_decoding_of(engine: Engine, where: object) -> ByteDecoding:
    """A tokenizer's byte decoding, from its decoder. Raises UsageError if that is of an unknown kind."""
    if engine.decoder is None:
        return ByteDecoding(str.encode)
    steps = _steps(json.loads(engine.decoder.__getstate__()))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return ByteDecoding(byte_level)
    if not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} or _has_expression(steps):
        strange = ", ".join(sorted(kinds))
        raise UsageError(f"{where}: its tokenizer decodes by {strange}, which is not supported")
    strips = any(
        (step["type"] == "Strip" and step.get("start"))
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return ByteDecoding(_replacer(steps, "ByteFallback" in kinds), strips)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _has_expression(steps: list[dict[str, Any]]) -> bool:
    return any("Regex" in step.get("pattern", ()) for step in steps)


def _replacer(steps: list[dict[str, Any]], has_bytes: bool) -> Callable[[str], bytes]:
    swaps = [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
    swaps += [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]

    def to_bytes(token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token) if has_bytes else None
        if match:
            return bytes([int(match[1], 16)])
        for old, new in swaps:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes
