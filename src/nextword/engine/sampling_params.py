"""How a token is chosen, and when a completion ends.

The definitions, in the order they apply; `sampler` implements them:

1. repetition penalty (prompt and generated), presence and frequency penalties (generated), logit bias: on raw logits;
2. temperature and truncations in `SamplingParams.order`, temperature first by default;
3. one 53-bit uniform number from Philox keyed by (seed, sample) at counter = position, and the inverse of the
   cumulative distribution over tokens sorted by (logit descending, id ascending), in float64. `sample` is the index
   of a completion among those of its prompt.

So a token depends on the logits, the seed, the sample index and the position, and on nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from ..base import UsageError
from .checks import number, shown, whole

ORDER = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class SamplingParams:
    """How a token is sampled. The defaults are neutral: the model's own distribution.

    Raises UsageError for a value outside its range; the message names the range.
    """

    temperature: float = 1.0  # 0 is greedy: the largest logit, ties to the lowest id, no random number
    top_k: int = 0  # keep exactly k tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set with at least this probability; 1 keeps all
    min_p: float = 0.0  # keep tokens with at least this fraction of the likeliest token's probability
    typical_p: float = 1.0  # locally typical sampling, Meister et al. 2022 (2202.00666); 1 keeps all
    repetition_penalty: float = 1.0  # Keskar et al. 2019 (1909.05858)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: a random one, reported with the result
    order: tuple[str, ...] = ORDER

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        object.__setattr__(self, "top_k", whole("top_k", self.top_k, 0))
        if self.repetition_penalty == 0:
            raise UsageError("repetition_penalty is 0; it takes a number above 0 (1: none)")
        if self.seed is not None:
            object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**64 - 1))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "order", _full_order(self.order))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def neutral_logits(self) -> bool:
        """Whether the raw logits are used unchanged (no bias, no penalty)."""
        return not self.logit_bias and self._no_penalty

    @property
    def only_forbids(self) -> bool:
        """Whether all that changes the raw logits is that some tokens are forbidden."""
        return self._no_penalty and all(bias == -math.inf for bias in self.logit_bias.values())

    @property
    def _no_penalty(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) == (1, 0, 0)


@dataclass(frozen=True)
class StopConfig:
    """When a completion ends. Raises UsageError for an invalid value."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()  # end before the first of these texts

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1))
        for stop in self.stop:
            if not isinstance(stop, str):
                raise UsageError(f"a stop string is {shown(stop)}; it takes text")
            if not stop:
                raise UsageError("a stop string is empty; it would end every completion before its first token")


_RANGES = {
    "temperature": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
}


def _biases(biases: Mapping[int, Any]) -> dict[int, float]:
    """Logit biases by token id, checked except for the vocabulary size."""
    if not isinstance(biases, Mapping):
        raise UsageError(f"logit_bias is {shown(biases)}; it takes a dictionary of token ids and numbers")
    return {whole("a token id of logit_bias", token, 0): _bias(token, bias) for token, bias in biases.items()}


def _bias(token: int, bias: Any) -> float:
    if isinstance(bias, Real) and bias == -math.inf:
        return -math.inf
    return number(f"logit_bias of token {token} (-inf forbids it)", bias)


def _full_order(order: Sequence[str]) -> tuple[str, ...]:
    """All of ORDER: the named ones in the given order, then the rest."""
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise UsageError(f"order is {shown(order)}; it takes a list of {', '.join(ORDER)}")
    if len(set(map(repr, order))) != len(order) or any(name not in ORDER for name in order):
        raise UsageError(f"order {shown(list(order))} does not fit; it takes each of {', '.join(ORDER)} at most once")
    return (*order, *(name for name in ORDER if name not in order))


def fresh_seed() -> int:
    """A random seed, short enough to retype."""
    return int.from_bytes(os.urandom(4), "big")
