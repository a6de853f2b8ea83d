"""Training, generation, plans, fits and evaluations give the numbers that are stored beside this file.

A change that means to keep them leaves the files alone; one that means to change them runs make.py and says why.
"""

from __future__ import annotations

from typing import Any

import pytest
from make import TOPICS, computed, stored


def agree(today: dict[str, Any], topic: str, absolute: float = 0.0, relative: float = 0.0) -> None:
    """Every entry of a topic equals the stored one: lists of floats and floats within a tolerance, others exactly."""

    def compare(now: Any, then: Any, where: str) -> None:
        if isinstance(then, dict):
            assert list(now) == list(then), where
            for name in then:
                compare(now[name], then[name], f"{where}, {name}")
        elif isinstance(then, float) or (isinstance(then, list) and isinstance(then[0], float)):
            assert now == pytest.approx(then, abs=absolute, rel=relative), where
        else:
            assert now == then, where

    compare(today, stored(topic), topic)


def test_tiny_models_of_every_kind_train_and_generate_as_stored() -> None:
    """MKL's and ATen's sums differ between processors: losses by up to 1e-6 from AVX-512 to AVX2 to scalar code."""
    today = computed("training", "ids_of_tiny_models")
    agree(today["training"], "training", absolute=1e-5)
    agree(today["ids_of_tiny_models"], "ids_of_tiny_models")


def test_smollm2_generates_and_answers_as_stored() -> None:
    """Log probabilities within 1e-3 nats: MKL's sums differ in the last bits between processors."""
    today = computed("ids_of_smollm2", "evaluation")
    agree(today["ids_of_smollm2"], "ids_of_smollm2")
    agree(today["evaluation"], "evaluation", absolute=1e-3)


def test_plans_are_the_stored_ones_to_the_last_digit() -> None:
    agree(TOPICS["plans"](), "plans")


def test_laws_fitted_to_epochs_points_have_the_stored_constants() -> None:
    """NumPy's exp and log differ in the last bit between processors, after which BFGS ends up to 7e-9 apart."""
    agree(TOPICS["laws"](), "laws", relative=1e-6)


def test_every_stored_completion_has_32_ids_and_none_was_nearly_another() -> None:
    """The runtime's bits are the same on every processor; the margins are beyond what is left, a C library's exp."""
    for completions in (*stored("ids_of_tiny_models").values(), *stored("ids_of_smollm2").values()):
        assert [len(ids) for ids in completions.values()] == [32, 32]
    for name, margins in stored("margins_of_ids").items():
        assert margins["nats"] > 1e-3, name
        assert margins["probability"] > 1e-6, name
