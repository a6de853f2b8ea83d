"""Corrections for a model that favours a label whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTENT_FREE = ("N/A", "", "[MASK]")

Probabilities = np.ndarray  # (items, labels)


def label_probabilities(logprobs: np.ndarray) -> Probabilities:
    """Probabilities over the labels alone, from ln p of each (items, labels)."""
    shifted = np.exp(logprobs - logprobs.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def contextual(probabilities: np.ndarray, content_free: Sequence[Sequence[float]]) -> np.ndarray:
    """Scores after contextual calibration: W p with W = diag(p_cf)^-1 (Zhao et al. 2021, 2102.09690, section 5).

    `probabilities` (items, labels) are made to sum to one a row. `content_free` (inputs, labels) are the model's own
    probabilities, which do not: their mean is taken first, and made to sum to one then.
    """
    mean = np.asarray(content_free, float).mean(0) + np.finfo(float).tiny  # a label never said is no division by 0
    shares = probabilities / probabilities.sum(-1, keepdims=True)
    return np.asarray(shares / (mean / mean.sum()))


def batch(logprobs: np.ndarray, divide: bool = False) -> np.ndarray:
    """Scores after batch calibration: ln p less its mean over the items (Zhou et al. 2023, 2309.17249, eq. 4).

    With `divide`, label probabilities divided by their mean. It reads all items at once, but none of their labels.
    """
    if divide:
        probabilities = label_probabilities(logprobs)
        return np.asarray(probabilities / probabilities.mean(0))
    own = logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)
    return np.asarray(own - own.mean(0))
