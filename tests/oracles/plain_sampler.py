"""The sampler as it was before sampling became one call for all rows: one row at a time, sorted, in numpy.

Kept as it was, as the oracle of the new one: the same logits, settings and numbers must give the same tokens.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nextword.base import RunError
from nextword.engine.sampling_params import SamplingParams

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


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

    def __init__(self, logits: NDArray[np.floating], sampling: SamplingParams) -> None:
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
    logits: NDArray[np.floating], sampling: SamplingParams, seed: int, sample: int, position: int
) -> tuple[int, float]:
    """Draw one token from adjusted logits (vocabulary,): its id and the probability it was drawn with."""
    if sampling.greedy:
        _check_finite(logits)
        return int(np.argmax(logits)), 1.0
    distribution = Distribution(logits, sampling)
    token = distribution.pick(uniform(seed, sample, position))
    return token, distribution.probability(token)
