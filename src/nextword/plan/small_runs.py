"""The loss of small runs, in bits a byte: a law fitted to runs of `nextword scale` on several texts.

The constants lie in small_runs.json, with their source. Losses are predicted with an interval: that of the law on texts
it was not fitted to, which runs on the same text narrow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..spec import ModelKind

LEVEL = 0.9  # of the intervals
SMALL_RUNS = Path(__file__).with_name("small_runs.json")


@dataclass(frozen=True)
class SmallRun:
    """What the law knows of a run: M = FLOPs a token / 6, bytes of text seen (repeated ones count less), and so on.

    `context` is in bytes; `bigrams` and `repeats` are the text's difficulty, in bits a byte (data/difficulty.py).
    """

    kind: ModelKind
    size: float
    bytes: float
    vocabulary: float
    context: float
    bigrams: float
    repeats: float


@dataclass(frozen=True)
class SmallLaw:
    """bits = g^p r^q (V / 512)^v (T / 256)^c (E + A_kind (M / 1e5)^-alpha + B_kind (D / 1e6)^-beta).

    g are the text's `bigrams`, r its `repeats`, T and D bytes of context and of text seen; `powers` has p, q, v and c.
    Spreads are standard deviations of ln(measured / predicted): `between` texts, `within` a text, and `beyond` for each
    e-fold outside `ranges`, those of the runs. `reach`: half of the interval's width in standard deviations.
    """

    name: str
    source: str
    floor: float  # E
    size: Mapping[str, float]  # A
    alpha: float
    bytes: Mapping[str, float]  # B
    beta: float
    powers: Mapping[str, float]
    between: float
    within: float
    beyond: float
    reach: float
    ranges: Mapping[str, tuple[float, float]]

    def bits(self, run: SmallRun) -> float:
        """Bits a byte. Vocabulary and context count as far as the law's runs go."""
        vocabulary, context = (self._inside(name, getattr(run, name)) for name in ("vocabulary", "context"))
        p, text = self.powers, run.bigrams ** self.powers["bigrams"] * run.repeats ** self.powers["repeats"]
        shape = (vocabulary / 512) ** p["vocabulary"] * (context / 256) ** p["context"]
        too_small = self.size[run.kind] * (run.size / 1e5) ** -self.alpha
        too_short = self.bytes[run.kind] * (run.bytes / 1e6) ** -self.beta
        return float(text * shape * (self.floor + too_small + too_short))

    def outside(self, run: SmallRun) -> dict[str, float]:
        """How far the run lies beyond the law's runs, in e-folds, by quantity."""
        values = {name: getattr(run, name) for name in self.ranges}
        found = {name: abs(math.log(value / self._inside(name, value))) for name, value in values.items()}
        return {name: beyond for name, beyond in found.items() if beyond > 0}

    def _inside(self, name: str, value: float) -> float:
        low, high = self.ranges[name]
        return min(max(value, low), high)

    def factor(self, ratios: Sequence[float], beyond: float = 0.0) -> Factor:
        """What to multiply the law's loss with, by `ratios`, measured / the law's of similar runs on the text.

        A text's own factor has the spread b between texts before anything is measured, and a run the spread w: the
        mean of the logs of n ratios is shrunk by n b² / (n b² + w²). `beyond`: e-folds outside the law's runs.
        """
        count, between, within = len(ratios), self.between**2, self.within**2
        weight = count * between / (count * between + within)
        shift = weight * sum(map(math.log, ratios)) / max(1, count)
        reach = self.reach * math.sqrt(between * (1 - weight) + within + (self.beyond * beyond) ** 2)
        return Factor(math.exp(shift), math.exp(shift - reach), math.exp(shift + reach), count)

    def expect(self, run: SmallRun, guess: float, ratios: Sequence[float] = ()) -> Expected:
        """The loss of a run, at most `guess` bits a byte; `ratios` as in `factor`."""
        outside, law = self.outside(run), min(guess, self.bits(run))
        factor = self.factor(ratios, sum(outside.values()))
        low, bits, high = (min(guess, law * value) for value in (factor.low, factor.value, factor.high))
        far = f"; {', '.join(outside)} beyond its runs" if outside else ""
        return Expected(bits, low, high, law, factor.basis + far)


@dataclass(frozen=True)
class Factor:
    """A factor on the law's loss and its interval, from `runs` on the same text."""

    value: float
    low: float
    high: float
    runs: int

    @property
    def basis(self) -> str:
        """What the interval is, in words."""
        also = f" and {self.runs} similar run{'s' if self.runs > 1 else ''} on this text" if self.runs else ""
        return f"{LEVEL:.0%}, by the law of small runs{also}"


@dataclass(frozen=True)
class Expected:
    """A predicted loss in bits a byte, its interval and what that is, and the loss without runs on the text."""

    bits: float
    low: float
    high: float
    law: float
    basis: str = ""


@cache
def small_law() -> SmallLaw:
    """The law of small_runs.json."""
    data: dict[str, Any] = json.loads(SMALL_RUNS.read_text(encoding="utf-8"))
    return SmallLaw(**data)
