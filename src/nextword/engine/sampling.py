"""Logits → the next token, exactly.

The definitions, in the order they apply:

1. repetition penalty (prompt and generated), presence and frequency penalties (generated), logit bias: on raw logits;
2. temperature and truncations in `Sampling.order`, temperature first unless asked otherwise;
3. one 53-bit uniform number from Philox keyed by (seed, sample) at counter = position, and the inverse of the
   cumulative distribution over tokens by (logit descending, id ascending), in float64. `sample` numbers the
   completions of one prompt.

So a token depends on the logits, the seed, the sample and the position, and on nothing else.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError
from .checks import number, shown, whole

ORDER = ("temperature", "top_k", "top_p", "min_p", "typical_p")
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults are neutral: the model's own distribution, untouched.

    Raises UsageError for a setting outside its range; every message names the range.
    """

    temperature: float = 1.0  # 0 is greedy: the largest logit, ties to the lowest id, nothing drawn
    top_k: int = 0  # keep exactly k tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set with at least this probability; 1 keeps all
    min_p: float = 0.0  # keep tokens with at least this share of the likeliest one's probability
    typical_p: float = 1.0  # locally typical sampling, Meister et al. 2022 (2202.00666); 1 keeps all
    repetition_penalty: float = 1.0  # Keskar et al. 2019 (1909.05858)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: a fresh one, reported with the result
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
        object.__setattr__(self, "order", _whole_order(self.order))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def neutral_logits(self) -> bool:
        """Whether raw logits pass unchanged (no bias, no penalty)."""
        return not self.logit_bias and (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) == (
            1,
            0,
            0,
        )


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
    """What is added to which token's logit, checked but for the vocabulary's size."""
    if not isinstance(biases, Mapping):
        raise UsageError(f"logit_bias is {shown(biases)}; it takes a dictionary of token ids and numbers")
    return {whole("a token id of logit_bias", token, 0): _bias(token, bias) for token, bias in biases.items()}


def _bias(token: int, bias: Any) -> float:
    if isinstance(bias, Real) and bias == -math.inf:
        return -math.inf
    return number(f"logit_bias of token {token} (-inf forbids it)", bias)


def _whole_order(order: Sequence[str]) -> tuple[str, ...]:
    """All of ORDER: those named in that order, then the others."""
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise UsageError(f"order is {shown(order)}; it takes a list of {', '.join(ORDER)}")
    if len(set(map(repr, order))) != len(order) or any(name not in ORDER for name in order):
        raise UsageError(f"order {shown(list(order))} does not fit; it takes each of {', '.join(ORDER)} at most once")
    return (*order, *(name for name in ORDER if name not in order))


def fresh_seed() -> int:
    """A seed from the operating system, small enough to be typed again."""
    return int.from_bytes(os.urandom(4), "big")


def uniform(seed: int, sample: int, position: int) -> float:
    """The random number of one draw: 53 bits in [0, 1), from Philox keyed by (seed, sample) at `position`."""
    generator = np.random.Philox(
        key=np.array([seed, sample], np.uint64), counter=np.array([position, 0, 0, 0], np.uint64)
    )
    return float(generator.random_raw() >> 11) * 2.0**-53


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """ln p under the model, float64 (..., vocabulary)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def adjust(
    logits: NDArray[np.floating], sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> NDArray[np.floating]:
    """Raw logits (vocabulary,) with penalties and bias; the same array where there are none."""
    if sampling.neutral_logits:
        return logits
    z = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *generated], np.int64))
        penalty = sampling.repetition_penalty
        z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(generated).items():
            z[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < z.size:
            raise UsageError(f"logit_bias names token {token}; the vocabulary has ids 0 to {z.size - 1}")
        z[token] += bias
    return z


def _check_finite(logits: NDArray[np.floating]) -> None:
    """Refuse logits that no distribution can be made of, rather than draw from what is left of them."""
    largest = logits.max()  # NaN if any is
    if not math.isfinite(largest):
        raise RunError("the model's logits hold NaN or no finite value, so nothing can be drawn. Try --dtype float32")


class Distribution:
    """What one token is drawn from: `ids` by (logit descending, id ascending) and their float64 weights.

    Only the head of the vocabulary that a question touches is sorted: `ids` and `weights` hold the tokens
    worth at least `floor` of the likeliest one, and deepen when a truncation or a draw needs more. `total`
    is the weight of all tokens kept, the unsorted ones included.
    """

    def __init__(self, logits: NDArray[np.floating], sampling: Sampling) -> None:
        _check_finite(logits)
        self._z = logits.astype(np.float64)
        self._z -= self._z.max()  # before dividing: exact for any temperature, and never overflows
        self.temperature = 1.0
        self._sums: Floats | None = None  # of the weights, cumulated when a draw first needs them
        self._rank(floor=-6.0)
        for step in sampling.order:
            if step == "temperature":
                self._heat(sampling.temperature)
            elif step == "top_k" and sampling.top_k:
                self._keep_first(sampling.top_k)
            elif step == "top_p" and sampling.top_p < 1:
                self._keep_mass(sampling.top_p)
            elif step == "min_p" and sampling.min_p > 0:
                self._keep_share(sampling.min_p)
            elif step == "typical_p" and sampling.typical_p < 1:
                self._keep_typical(sampling.typical_p)

    def probabilities(self) -> tuple[Ids, Floats]:
        """All kept ids, likeliest first, and their probabilities, which sum to one."""
        self._sort_all()
        return self.ids, self.weights / self.total

    def probability(self, token: int) -> float:
        """Probability that `token` is drawn; 0 where a truncation removed it."""
        if not self._complete:
            return float(np.exp(self._z[token] / self.temperature) / self.total)
        place = np.flatnonzero(self.ids == token)
        return float(self.weights[place[0]] / self.total) if place.size else 0.0

    def pick(self, u: float) -> int:
        """The token at which the cumulative probability first exceeds `u` in [0, 1)."""
        while not self._complete and u * self.total >= self._cumulative()[-1]:
            self._deepen()
        cumulative = self._cumulative()
        place = int(np.searchsorted(cumulative, u * self.total, side="right"))
        if place == self.ids.size:  # u * total rounded up to the whole: the last token that can be drawn
            place = int(np.flatnonzero(self.weights)[-1])
        return int(self.ids[place])

    def _cumulative(self) -> Floats:
        if self._sums is None:
            self._sums = np.cumsum(self.weights)
        return self._sums

    def _rank(self, floor: float) -> None:
        """Sort the tokens whose logit is within `floor` of the largest; -inf sorts all."""
        self._floor = floor
        found = np.flatnonzero(self._z >= floor)
        if found.size > self._z.size // 4:
            found, floor = np.arange(self._z.size), -np.inf
        self.ids: Ids = found[np.argsort(-self._z[found], kind="stable")]
        self._complete = floor == -np.inf
        self._weigh()

    def _weigh(self) -> None:
        with np.errstate(over="ignore", under="ignore"):
            self.weights: Floats = np.exp(self._z[self.ids] / self.temperature)
            if self._complete:
                self.total = float(self.weights.sum())
            else:
                self.total = float(np.exp(self._z / self.temperature).sum())
        self._sums = None

    def _deepen(self) -> None:
        """Sort a longer head; called only while tokens are left unsorted."""
        self._rank(2 * self._floor)

    def _sort_all(self) -> None:
        if not self._complete:
            self._rank(-np.inf)

    def _heat(self, temperature: float) -> None:
        if temperature != self.temperature:
            self.temperature = temperature
            if temperature == 0:
                self.temperature = 1.0
                self._keep_first(1)
                return
            self._weigh()

    def _keep(self, ids: Ids) -> None:
        self.ids, self._complete = ids, True
        self._weigh()

    def _keep_first(self, count: int) -> None:
        while count > self.ids.size and not self._complete:
            self._deepen()
        self._keep(self.ids[:count])

    def _keep_mass(self, mass: float) -> None:
        while self._cumulative()[-1] / self.total < mass and not self._complete:
            self._deepen()
        cumulative = self._cumulative()
        self._keep(self.ids[: int(np.searchsorted(cumulative / self.total, mass, side="left")) + 1])

    def _keep_share(self, share: float) -> None:
        while self.weights[-1] >= share and not self._complete:
            self._deepen()
        self._keep(self.ids[self.weights >= share])  # the likeliest token weighs 1

    def _keep_typical(self, mass: float) -> None:
        """Tokens whose surprise is nearest to the entropy, until they hold `mass`."""
        self._sort_all()
        probabilities = self.weights / self.total
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(probabilities)
            entropy = float(np.where(probabilities > 0, probabilities * surprise, 0.0).sum())
        order = np.argsort(np.abs(surprise - entropy), kind="stable")
        enough = int(np.searchsorted(np.cumsum(probabilities[order]), mass, side="left")) + 1
        self._keep(self.ids[np.sort(order[:enough])])


def choose(
    logits: NDArray[np.floating], sampling: Sampling, seed: int, sample: int, position: int
) -> tuple[int, float]:
    """Draw one token from adjusted logits (vocabulary,): its id and the probability it was drawn with."""
    if sampling.greedy:
        _check_finite(logits)
        return int(np.argmax(logits)), 1.0
    distribution = Distribution(logits, sampling)
    token = distribution.pick(uniform(seed, sample, position))
    return token, distribution.probability(token)


# ---- temporary, until the vectorized sampler lands
@dataclass(frozen=True)
class SampleRow:
    sampling: Sampling
    uniform: float
    prompt: Sequence[int]
    generated: Sequence[int]
    allowed: NDArray[np.uint32] | None = None
    top_logprobs: int = 0


@dataclass(frozen=True)
class Candidate:
    id: int
    probability: float
    drawn: float


@dataclass(frozen=True)
class Draw:
    token: int
    drawn: float
    logprob: float
    top: tuple[Candidate, ...] = ()


class Uniforms:
    def __init__(self, seed: int, sample: int) -> None:
        self.key = (seed, sample)

    def at(self, position: int) -> float:
        return uniform(*self.key, position)


def sample(logits: NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Draw | RunError]:
    draws: list[Draw | RunError] = []
    for raw, row in zip(logits, rows, strict=True):
        try:
            z = adjust(raw, row.sampling, row.prompt, row.generated)
            if row.allowed is not None:
                bits = np.unpackbits(row.allowed.view(np.uint8), bitorder="little")[: z.size]
                z = np.where(bits, z, -np.inf)
            if row.sampling.greedy:
                _check_finite(z)
                token, drawn = int(np.argmax(z)), 1.0
            else:
                distribution = Distribution(z, row.sampling)
                token = distribution.pick(row.uniform)
                drawn = distribution.probability(token)
            own = log_softmax(raw)
            top = tuple(
                Candidate(int(i), float(np.exp(own[i])), 0.0)
                for i in np.argsort(-own, kind="stable")[: row.top_logprobs]
            )
            draws.append(Draw(token, drawn, float(own[token]), top))
        except RunError as error:
            draws.append(error)
    return draws
