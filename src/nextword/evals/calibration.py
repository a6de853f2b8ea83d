"""Corrections for a model that favours a label whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTENT_FREE = ("N/A", "", "[MASK]")

_FLOAT = 600.0  # e^-600 is a number with all its digits

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


def batch(logprobs: np.ndarray) -> np.ndarray:
    """Scores after batch calibration: the label probabilities less their mean over the items (2309.17249).

    It reads all items at once, but none of their answers (Zhou et al. 2023). A row whose differences are too small for
    a float is scaled up: only their order counts.
    """
    own = logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)
    mean = np.logaddexp.reduce(own, axis=0) - np.log(len(own))
    usual = int(mean.argmax())  # near 1 where labels differ by many nats: its difference is that of all others
    own, mean = np.delete(own, usual, 1), np.delete(mean, usual)
    scale = np.minimum(0.0, np.maximum(own, mean).max(1, initial=-np.inf, keepdims=True) + _FLOAT)
    others = np.exp(own - scale) - np.exp(mean - scale)
    return np.insert(others, usual, -others.sum(1), axis=1)
