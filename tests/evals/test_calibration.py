"""Corrections for a favoured label, by hand and by what they must leave alone. Cases: reference/prompting.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.evals.calibration import batch, contextual, label_probabilities

FREE = [(0.08, 0.02), (0.30, 0.30), (0.45, 0.05)]  # label probabilities after "N/A", "" and "[MASK]"


def test_contextual_calibration_averages_before_it_normalises() -> None:
    scores = contextual(np.array([[0.42, 0.18]]), FREE)[0]
    assert scores == pytest.approx([1.012048, 0.972973], abs=1e-6)
    normalised = [tuple(p / sum(row) for p in row) for row in FREE]
    other = contextual(np.array([[0.42, 0.18]]), normalised)[0]
    assert (int(np.argmax(scores)), int(np.argmax(other))) == (0, 1)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_contextual_calibration_sees_only_proportions(of_items: float, of_free: float) -> None:
    asked = np.array([[0.42, 0.18], [0.1, 0.3]])
    scaled = contextual(asked * of_items, np.array(FREE) * of_free)
    assert scaled == pytest.approx(contextual(asked, FREE))


def test_a_model_that_favours_no_label_is_not_corrected() -> None:
    asked = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert contextual(asked, [(0.2, 0.2, 0.2)]) == pytest.approx(3 * asked)


def divided(logprobs: np.ndarray) -> np.ndarray:
    """Batch calibration with the mean divided by: with two labels its choices are the same."""
    own = logprobs - np.logaddexp.reduce(logprobs, axis=-1, keepdims=True)
    return np.exp(own - np.logaddexp.reduce(own, axis=0))


def test_batch_calibration_by_hand() -> None:
    shares = np.array([(0.50, 0.36, 0.14), (0.34, 0.60, 0.06)])  # their means: .42, .48, .10
    scores = batch(np.log(shares))
    assert scores == pytest.approx(np.array([(0.08, -0.12, 0.04), (-0.08, 0.12, -0.04)]))
    assert list(scores.argmax(1)) == [0, 1]
    assert list(divided(np.log(shares)).argmax(1)) == [2, 1]  # what is not done: .14 / .10 is the largest of the first
    favoured = np.log([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]])
    assert list(batch(favoured).argmax(1)) == [0, 1, 0]  # all were 0 before: the least sure one was the bias speaking


@given(st.integers(0, 1000), st.floats(0, 60))
def test_with_two_labels_subtracting_and_dividing_choose_the_same(seed: int, favour: float) -> None:
    logprobs = np.random.default_rng(seed).normal((0, favour), 3, (7, 2))
    assert list(batch(logprobs).argmax(1)) == list(divided(logprobs).argmax(1))


LOGPROBS = st.integers(0, 1000).map(lambda seed: np.random.default_rng(seed).normal(-8, 3, (6, 3)))


@given(LOGPROBS)
def test_batch_calibration_leaves_no_label_favoured_on_the_whole(logprobs: np.ndarray) -> None:
    scores = batch(logprobs)
    assert scores == pytest.approx(label_probabilities(logprobs) - label_probabilities(logprobs).mean(0))
    assert scores.mean(0) == pytest.approx(np.zeros(3), abs=1e-12)


@given(LOGPROBS, st.integers(0, 10))
def test_what_all_labels_of_an_item_have_in_common_changes_nothing(logprobs: np.ndarray, seed: int) -> None:
    hard = np.random.default_rng(seed).normal(0, 50, (6, 1))
    assert batch(logprobs + hard) == pytest.approx(batch(logprobs), abs=1e-7)
    assert label_probabilities(logprobs + hard) == pytest.approx(label_probabilities(logprobs))


@pytest.mark.parametrize("nats", [45, 900])  # e^-45 is lost beside 1, e^-900 is nothing to a float
def test_labels_of_many_tokens_are_calibrated_too(nats: float) -> None:
    logprobs = np.array([[-1000.0 - nats, -1000.0], [-1001.0 - nats, -1000.0]])
    assert list(batch(logprobs).argmax(1)) == [0, 1]
