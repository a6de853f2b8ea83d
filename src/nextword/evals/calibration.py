"""Calibration: corrections for a model's bias towards a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..base import UsageError
from .task import Item, Task

CONTENT_FREE = ("N/A", "", "[MASK]")

_MAX_EXPONENT = 600.0  # e^-600 is a number with all its digits


def label_probabilities(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities over the labels alone, (items, labels), from ln p of each: a softmax."""
    shifted = np.exp(logprobs - logprobs.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def contextual(probabilities: np.ndarray, content_free: Sequence[Sequence[float]]) -> np.ndarray:
    """Scores after contextual calibration: W p with W = diag(p_cf)^-1 (Zhao et al. 2021, 2102.09690, section 5).

    `probabilities` (items, labels) are normalised by row. `content_free` (inputs, labels) are the model's own
    probabilities, which are not: their mean is taken first, and normalised then.
    """
    mean = np.asarray(content_free, float).mean(0) + np.finfo(float).tiny  # avoids division by 0
    shares = probabilities / probabilities.sum(-1, keepdims=True)
    return np.asarray(shares / (mean / mean.sum()))


def batch(logprobs: np.ndarray) -> np.ndarray:
    """Scores after batch calibration: the label probabilities less their mean over the items (2309.17249).

    It uses all items at once, but none of their answers (Zhou et al. 2023). A row with differences too small for a
    float is scaled up: only their order matters.
    """
    own = logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)
    mean = np.logaddexp.reduce(own, axis=0) - np.log(len(own))
    usual = int(mean.argmax())  # near 1 if labels differ by many nats: its difference is the sum of all others'
    own, mean = np.delete(own, usual, 1), np.delete(mean, usual)
    scale = np.minimum(0.0, np.maximum(own, mean).max(1, initial=-np.inf, keepdims=True) + _MAX_EXPONENT)
    others = np.exp(own - scale) - np.exp(mean - scale)
    return np.insert(others, usual, -others.sum(1), axis=1)


def content_free_item(task: Task, item: Item, text: str) -> Item:
    """The item with all texts of its question replaced by `text`, for contextual calibration.

    Raises UsageError if that changes its choices: then there is no single set of labels to calibrate.
    """
    emptied = {
        name: text if isinstance(value, str) and not _has_answer(task, item, name) else value
        for name, value in item.values.items()
    }
    if task.format.choices(emptied) != task.format.choices(item.values):
        raise UsageError(f"{task.name}: its choices differ from item to item, so there are no labels to calibrate")
    return replace(item, values=emptied)


def _has_answer(task: Task, item: Item, column: str) -> bool:
    """Whether a column holds the answer, and so must be kept."""
    try:
        return task.format.gold({**item.values, column: "N/A"}) != task.format.gold(item.values)
    except UsageError:
        return True
