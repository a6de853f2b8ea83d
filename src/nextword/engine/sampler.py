"""Logits → the next tokens of all rows in one call, exactly as `sampling` defines it.

The compiled kernels (`native.logits`) take rows of the usual settings. `Distribution` takes the others (locally typical
sampling, an order of one's own), all where there are no kernels, and shows a whole distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from .. import native
from ..base import RunError, UsageError
from ..native import logits as kernels
from .sampling_params import ORDER, SamplingParams

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class SampleRow:
    """How to sample the next token of one sequence.

    `prompt` and `generated` are read if `sampling` has penalties. `allowed`: bit i of word i // 32 says whether
    token i may be sampled; None allows all. `top_logprobs`: how many of the likeliest tokens to report. `kept_mass`:
    whether to report the probability of all that could be drawn.
    """

    sampling: SamplingParams
    uniform: float  # from `Uniforms`; not used by greedy sampling
    prompt: Sequence[int]
    generated: Sequence[int]
    allowed: NDArray[np.uint32] | None = None
    top_logprobs: int = 0
    kept_mass: bool = False


@dataclass(frozen=True)
class Candidate:
    """An alternative: its probability under the model, and after sampling parameters."""

    id: int
    probability: float
    sampled_prob: float


@dataclass(frozen=True)
class Draw:
    """A sampled token, its probability at sampling, its ln p under the model, and the model's likeliest tokens.

    `kept_mass`: the model's probability of all tokens that could be drawn; None if it was not asked for.
    """

    token: int
    sampled_prob: float
    logprob: float
    top: tuple[Candidate, ...] = ()
    kept_mass: float | None = None


class Uniforms:
    """The random numbers of one sample: 53 bits in [0, 1) of Philox keyed by (seed, sample), counter = position."""

    BLOCK = 256  # positions computed at a time

    def __init__(self, seed: int, sample: int) -> None:
        self._key = np.array([seed, sample], np.uint64)
        self._start = -1
        self._numbers: list[float] = []

    def at(self, position: int) -> float:
        start = position - position % self.BLOCK
        if start != self._start:
            generator = np.random.Philox(key=self._key, counter=np.array([start, 0, 0, 0], np.uint64))
            words = generator.random_raw(4 * self.BLOCK)[::4]  # a counter gives four
            self._start, self._numbers = start, ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers[position - start]


def sample(
    logits: NDArray[np.float32], rows: Sequence[SampleRow], at: Sequence[int] | None = None
) -> list[Draw | RunError]:
    """Draw a token for each of `rows` from `logits` (·, vocabulary): from its row `at[i]`, or from row i.

    What a row gives depends on nothing but itself, to the bit. One whose logits hold NaN or no finite value gives a
    RunError in its place.
    """
    places = range(len(rows)) if at is None else at
    if not native.available():
        return [_sample_row(logits[place], row) for place, row in zip(places, rows, strict=True)]
    usual = [_is_usual(row.sampling) for row in rows]
    if all(usual):
        return _sample_compiled(logits, rows, places)
    together = iter(
        _sample_compiled(logits, list(compress(rows, usual)), list(compress(places, usual))) if any(usual) else ()
    )
    return [
        next(together) if compiled else _sample_row(logits[place], row)
        for compiled, place, row in zip(usual, places, rows, strict=True)
    ]


def adjust(logits: Logits, sampling: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> Logits:
    """Raw logits (vocabulary,) with penalties and bias; the same array where there are none."""
    if sampling.neutral_logits:
        return logits
    for token in sampling.logit_bias:
        if not 0 <= token < logits.size:
            raise UsageError(f"logit_bias names token {token}; the vocabulary has ids 0 to {logits.size - 1}")
    if sampling.only_forbids:  # exact in the logits' own type
        z = logits.copy()
        z[list(sampling.logit_bias)] = -np.inf
        return z
    z = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *generated], np.int64))
        penalty = sampling.repetition_penalty
        z[seen] = np.where(z[seen] > 0, z[seen] / penalty, z[seen] * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(generated).items():
            z[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    for token, bias in sampling.logit_bias.items():
        z[token] += bias
    return z


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """ln p under the model, float64 (..., vocabulary)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


class Distribution:
    """What one token is drawn from, computed with numpy: kept tokens by (logit descending, id ascending).

    `ids` and `weights` are of the head of the vocabulary that is sorted, a longer one where a truncation or a draw
    needs it; all of it if `whole`. `total` is the weight of all tokens kept, sorted or not.
    """

    def __init__(self, logits: NDArray[np.floating], sampling: SamplingParams, whole: bool = False) -> None:
        if not math.isfinite(logits.max()):  # NaN if any is
            raise _not_finite()
        self._z, self._sampling = logits.astype(np.float64), sampling
        self._z -= self._z.max()
        unit = max(1.0, sampling.temperature)
        self._depths = iter([math.inf] if whole else [6 * unit, 24 * unit, math.inf])
        self._deepen()

    def probabilities(self) -> tuple[Ids, Floats]:
        """The sorted ids, likeliest first, and their probabilities."""
        return self.ids, self.weights / self.total

    def probability(self, token: int) -> float:
        """Probability that `token` is drawn; 0 where a truncation removed it."""
        if not self._complete:
            return float(self._weight(self._z[token]) / self.total)
        places = np.flatnonzero(self.ids == token)
        return float(self.weights[places[0]] / self.total) if places.size else 0.0

    def pick(self, u: float) -> int:
        """The token at which the cumulative probability first exceeds `u` in [0, 1)."""
        while not self._complete and u * self.total >= np.cumsum(self.weights)[-1]:
            self._deepen()
        place = int(np.searchsorted(np.cumsum(self.weights), u * self.total, side="right"))
        if place == self.ids.size:  # u * total rounded up to the whole: the last token that can be drawn
            place = int(np.flatnonzero(self.weights)[-1])
        return int(self.ids[place])

    @property
    def kept(self) -> Ids:
        """The ids of all tokens that can be drawn."""
        if not self._complete:  # nothing is cut: all that weigh anything
            return np.flatnonzero(self._z > -math.inf)
        return self.ids[self.weights > 0]

    def _deepen(self) -> None:
        while not self._rank(next(self._depths)):
            pass

    def _rank(self, depth: float) -> bool:
        """Sort the tokens whose logit is within `depth` of the largest, and truncate; False if they are too few."""
        head = np.flatnonzero(self._z >= -depth)
        self._complete, self._temperature = head.size == self._z.size, 1.0
        self._set(head[np.argsort(-self._z[head], kind="stable")])
        return all(self._apply(step) for step in self._sampling.order)

    def _set(self, ids: Ids) -> None:
        """Keep these: the likeliest weighs 1."""
        self.ids, self._largest = ids, self._z[ids[0]]
        self.weights = self._weight(self._z[ids])
        self.total = float((self.weights if self._complete else self._weight(self._z)).sum())

    def _weight(self, z: Floats) -> Floats:
        with np.errstate(over="ignore", under="ignore"):  # subtracted before dividing: exact at any temperature
            weights: Floats = np.exp((z - self._largest) / self._temperature)
        return weights

    def _apply(self, step: str) -> bool:
        """Take one step of `SamplingParams.order`; False if it needs more tokens than are sorted."""
        setting = getattr(self._sampling, step)
        if setting == getattr(SamplingParams, step):  # the default: changes nothing
            return True
        if step == "temperature" and setting > 0:
            self._temperature = setting
            self._set(self.ids)
            return True
        kept = self._kept("top_k", 1) if step == "temperature" else self._kept(step, setting)
        if kept is not None:
            self._complete = True
            self._set(kept)
        return kept is not None

    def _kept(self, truncation: str, setting: float) -> Ids | None:
        """What a truncation keeps; None if it needs more tokens than are sorted."""
        if truncation == "top_k":
            return self.ids[: int(setting)] if self._complete or setting <= self.ids.size else None
        if truncation == "top_p":
            cumulative = np.cumsum(self.weights) / self.total
            enough = int(np.searchsorted(cumulative, setting, side="left")) + 1
            return self.ids[:enough] if self._complete or enough <= self.ids.size else None
        if truncation == "min_p":
            return self.ids[self.weights >= setting] if self._complete or self.weights[-1] < setting else None
        return self._typical(setting) if self._complete else None

    def _typical(self, mass: float) -> Ids:
        """Tokens whose surprise is nearest to the entropy, until they hold `mass`."""
        probabilities = self.weights / self.total
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(probabilities)
            entropy = float(np.where(probabilities > 0, probabilities * surprise, 0.0).sum())
        order = np.argsort(np.abs(surprise - entropy), kind="stable")
        enough = int(np.searchsorted(np.cumsum(probabilities[order]), mass, side="left")) + 1
        return self.ids[np.sort(order[:enough])]


# ---- the two ways


def _is_usual(sampling: SamplingParams) -> bool:
    """Whether the kernels take it: temperature, top_k, top_p and min_p, those that do anything, in this order."""
    if sampling.order == ORDER or sampling.greedy:
        return sampling.typical_p == 1 or sampling.greedy
    steps = [step for step in sampling.order if getattr(sampling, step) != getattr(SamplingParams, step)]
    return "typical_p" not in steps and steps == sorted(steps, key=ORDER.index)


def _changes(row: SampleRow) -> bool:
    """Whether the token is drawn from other logits than the model's own."""
    return row.allowed is not None or not row.sampling.neutral_logits


def _drawn_from(raw: Logits, row: SampleRow) -> Logits:
    """The logits that a row's token is drawn from; `raw` itself where nothing changes them."""
    z = adjust(raw, row.sampling, row.prompt, row.generated)
    if row.allowed is None:
        return z
    bits = np.unpackbits(row.allowed.astype("<u4", copy=False).view(np.uint8), count=z.size, bitorder="little")
    return np.where(bits.view(np.bool_), z, -np.inf)


def _sample_row(raw: Logits, row: SampleRow) -> Draw | RunError:
    """Draw a token with numpy."""
    z, sampling = _drawn_from(raw, row), row.sampling
    if not (math.isfinite(raw.max()) and math.isfinite(z.max())):
        return _not_finite()
    own = log_softmax(raw)
    distribution = Distribution(z, SamplingParams(temperature=0) if sampling.greedy else sampling)
    token, probability = distribution.pick(row.uniform), distribution.probability
    top = tuple(Candidate(id, math.exp(own[id]), probability(id)) for id in _likeliest(raw, row.top_logprobs))
    kept = float(np.exp(own[distribution.kept]).sum()) if row.kept_mass else None
    return Draw(token, probability(token), float(own[token]), top, kept)


def likeliest_logprobs(logits: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens of a row of logits and their ln p, the likeliest first."""
    logprobs = log_softmax(logits)
    return [(id, float(logprobs[id])) for id in _likeliest(logits, count)]


def _likeliest(logits: Logits, count: int) -> list[int]:
    """The ids of the `count` largest logits, ties by id."""
    if count == 0:
        return []
    least = -np.partition(-logits, min(count, logits.size) - 1)[min(count, logits.size) - 1]
    ids = np.flatnonzero(logits >= least)
    return [int(id) for id in ids[np.argsort(-logits[ids], kind="stable")][:count]]


def _sample_compiled(
    logits: NDArray[np.float32], rows: Sequence[SampleRow], places: Sequence[int]
) -> list[Draw | RunError]:
    """Draw a token for each of `rows` with the compiled kernels."""
    raw = np.ascontiguousarray(logits)
    adjusted = [
        _drawn_from(raw[place], row) if _changes(row) else None for row, place in zip(rows, places, strict=True)
    ]
    settings = np.array([_settings(row, raw.shape[1]) for row in rows], kernels.SETTINGS)
    results, top_ids = kernels.draw(raw, places, adjusted, settings)
    logprobs = raw[places, results["token"]] - results["own_largest"] - results["own_log_sum"]
    draws: list[Draw | RunError] = []
    for index, (row, logprob, (finite, token, drawn, *_)) in enumerate(
        zip(rows, logprobs.tolist(), results.tolist(), strict=True)
    ):
        if not finite:
            draws.append(_not_finite())
            continue
        top: tuple[Candidate, ...] = ()
        own, other = raw[places[index]], adjusted[index]
        z = own if other is None else other
        if row.top_logprobs:
            top = _candidates(own, z, row, top_ids[index, : row.top_logprobs], results[index])
        kept = _kept_mass(own, z, row, results[index]) if row.kept_mass else None
        draws.append(Draw(token, drawn, logprob, top, kept))
    return draws


def _kept_mass(raw: Logits, z: Logits, row: SampleRow, result: np.void) -> float:
    """The model's probability of the tokens that could be drawn, from the kernels' kernels.RESULTS."""
    if row.sampling.greedy:
        kept = raw[[result["token"]]]
    else:
        edge, ids = result["edge_logit"], np.arange(raw.size)
        kept = raw[((z > edge) | ((z == edge) & (ids < result["edge_id"]))) & (z > -np.inf)]
    return float(np.exp(kept.astype(np.float64) - result["own_largest"] - result["own_log_sum"]).sum())


def _settings(row: SampleRow, vocabulary: int) -> tuple[float, ...]:
    """A row's kernels.SETTINGS."""
    s = row.sampling
    top_k = s.top_k if s.top_k < vocabulary else 0
    return s.temperature, s.top_p, s.min_p, row.uniform, top_k, min(row.top_logprobs, vocabulary)


def _candidates(
    raw: Logits, z: Logits, row: SampleRow, ids: NDArray[np.int32], result: np.void
) -> tuple[Candidate, ...]:
    """The likeliest tokens of a row, from the kernels' kernels.RESULTS."""
    if ids.min() < 0:  # some weigh nothing, and the kernels leave them out
        ids = np.array(_likeliest(raw, row.top_logprobs), np.int32)
    ids = np.sort(ids)
    ids = ids[np.argsort(-raw[ids], kind="stable")]
    probabilities = np.exp(raw[ids].astype(np.float64) - result["own_largest"] - result["own_log_sum"])
    if row.sampling.greedy:
        drawn = (ids == result["token"]).astype(np.float64)
    else:
        logit, edge = z[ids].astype(np.float64), result["edge_logit"]
        kept = (logit > edge) | ((logit == edge) & (ids < result["edge_id"]))
        with np.errstate(over="ignore"):
            drawn = kept * np.exp((logit - result["largest"]) / row.sampling.temperature) / result["mass"]
        drawn[ids == result["token"]] = result["drawn"]
    return tuple(map(Candidate, ids.tolist(), probabilities.tolist(), drawn.tolist()))


def _not_finite() -> RunError:
    return RunError("the model's logits hold NaN or no finite value, so nothing can be drawn. Try --dtype float32")
