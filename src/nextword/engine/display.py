"""Tokens and probabilities as text, for the terminal and figures."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Alternative, NextTokenDistribution

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}


def visible(token: str, unicode: bool = True) -> str:
    """A token with its spaces and control characters shown: "␣the", "\\n". ASCII shows it in quotes."""
    if not unicode:
        return ascii(token).replace("'", '"') if token else '""'
    shown = "".join(_visible_character(character) for character in token)
    if shown and unicodedata.combining(shown[0]):
        shown = "◌" + shown  # a mark needs something to stand on
    return shown or "(empty)"


def _visible_character(character: str) -> str:
    if character == " ":
        return "␣"
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def percent(probability: float) -> str:
    """A probability in at most six characters: "41.23%", "<0.01%"; "100%" only for a certainty."""
    if probability >= 1:
        return "100%"
    if probability >= 0.99995:
        return ">99.9%"
    if 0 < probability < 0.00005:
        return "<0.01%"
    return f"{100 * probability:.2f}%"


def bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)


def label(distribution: NextTokenDistribution) -> str:
    """The temperature, as a heading."""
    return "T = 0 (greedy)" if distribution.temperature == 0 else f"T = {distribution.temperature:g}"


def mass(distribution: NextTokenDistribution) -> str:
    """How many tokens carry 90% of the probability."""
    return f"{distribution.covering_90:,} token{'s' if distribution.covering_90 > 1 else ''}"


@dataclass(frozen=True)
class Row:
    """One token at every temperature; a probability is None if the token is only part of the tail."""

    text: str
    shares: tuple[float | None, ...]


def rows(distributions: Sequence[NextTokenDistribution]) -> list[Row]:
    """The tokens in any of the distributions, sorted by the model's own probability."""
    known: dict[int, Alternative] = {}
    for distribution in distributions:
        for alternative in distribution.top:
            known.setdefault(alternative.id, alternative)
    drawn = [{token.id: token.sampled_prob for token in distribution.top} for distribution in distributions]
    ordered = sorted(known.values(), key=lambda token: (-token.probability, token.id))
    pairs = list(zip(drawn, distributions, strict=True))
    return [Row(token.text, tuple(_share(shares, token.id, of) for shares, of in pairs)) for token in ordered]


def _share(drawn: dict[int, float], token: int, distribution: NextTokenDistribution) -> float | None:
    if token in drawn:
        return drawn[token]
    return None if distribution.tail_mass > 0 else 0.0  # nothing is left outside what is listed
