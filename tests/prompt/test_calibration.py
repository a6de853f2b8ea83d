"""Corrections for a favoured label, by hand and by what they must leave alone. Cases: reference/prompting.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.prompt.calibration import batch, contextual, label_probabilities

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


def test_batch_calibration_by_hand() -> None:
    logprobs = np.log([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]])
    means = [np.log(0.8 * 0.6 * 0.9) / 3, np.log(0.2 * 0.4 * 0.1) / 3]
    scores = batch(logprobs)
    assert scores[1] == pytest.approx([np.log(0.6) - means[0], np.log(0.4) - means[1]])
    assert list(scores.argmax(1)) == [0, 1, 0]  # all were 0 before: the least sure one was the bias speaking
    divided = batch(logprobs, divide=True)
    assert divided[0] == pytest.approx([0.8 / (2.3 / 3), 0.2 / (0.7 / 3)])


LOGPROBS = st.integers(0, 1000).map(lambda seed: np.random.default_rng(seed).normal(-8, 3, (6, 3)))


@given(LOGPROBS, st.floats(-20, 20), st.integers(0, 2))
def test_batch_calibration_takes_off_whatever_a_label_is_favoured_by(
    logprobs: np.ndarray, bias: float, label: int
) -> None:
    favoured = logprobs + bias * (np.arange(3) == label)
    one, other = batch(logprobs), batch(favoured)
    assert one.mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    # labels stand to each other as before, in every item
    assert other - other[:, :1] == pytest.approx(one - one[:, :1], abs=1e-9)


@given(LOGPROBS, st.integers(0, 10))
def test_what_all_labels_of_an_item_have_in_common_changes_nothing(logprobs: np.ndarray, seed: int) -> None:
    hard = np.random.default_rng(seed).normal(0, 50, (6, 1))
    for divide in (False, True):
        assert batch(logprobs + hard, divide) == pytest.approx(batch(logprobs, divide), abs=1e-7)
    assert label_probabilities(logprobs + hard) == pytest.approx(label_probabilities(logprobs))


def test_labels_of_hundreds_of_tokens_are_calibrated_too() -> None:
    logprobs = np.array([[-1900.0, -1000.0], [-1950.0, -1000.0]])  # e^-900 is nothing to a float
    assert batch(logprobs) == pytest.approx(np.array([[25.0, 0.0], [-25.0, 0.0]]))
