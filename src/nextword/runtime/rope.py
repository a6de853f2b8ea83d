"""Tables of rotary position embeddings, extended as texts grow longer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..rope import amplitude, frequencies
from ..spec import RopeSpec

Tables = tuple[NDArray[np.float32], NDArray[np.float32]]
FIRST_POSITIONS = 1024


def tables(rope: RopeSpec, head_width: int, positions: int) -> Tables:
    """cos and signed sin, float32 (positions, rotary_width); pair i is (i, i + rotary_width / 2).

    Angles are float32, as transformers computes them; their cosines are rounded once, from float64.
    """
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies(rope, head_width)).astype(np.float64)
    cosine, sine = np.cos(angles) * amplitude(rope), np.sin(angles) * amplitude(rope)
    return _pairs(cosine, cosine), _pairs(-sine, sine)


def _pairs(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.concatenate((first, second), 1, dtype=np.float32, casting="same_kind")


class RopeCache:
    """The tables of a rope for the positions seen so far, and some more."""

    def __init__(self, rope: RopeSpec, head_width: int) -> None:
        self.rope, self.head_width = rope, head_width
        self._tables = tables(rope, head_width, FIRST_POSITIONS)

    def upto(self, positions: int) -> Tables:
        """Tables of at least `positions` positions."""
        if positions > len(self._tables[0]):
            self._tables = tables(self.rope, self.head_width, 2 * positions)
        return self._tables
