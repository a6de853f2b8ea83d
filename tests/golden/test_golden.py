"""Training, generation, plans, fits and evaluations give the numbers that are stored beside this file.

A change that means to keep them leaves the files alone; one that means to change them runs make.py and says why.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from make import ITEMS, KINDS, TOPICS, computed, stored

PROCESSES = (("training", "ids_of_tiny_models", "plans", "laws"), ("ids_of_smollm2", "evaluation"))


@cache
def _together(topics: tuple[str, ...]) -> dict[str, Any]:
    return computed(*topics)


def now(topic: str) -> Any:
    """A topic's values by today's code, those of one process computed once."""
    return next(_together(topics)[topic] for topics in PROCESSES if topic in topics)


@pytest.mark.parametrize("kind", KINDS)
def test_20_losses_of_a_training_run_are_the_stored_ones(kind: str) -> None:
    """MKL's and ATen's sums differ between processors: losses by up to 1e-6 from AVX-512 to AVX2 to scalar code."""
    assert len(stored("training")[kind]) == 20
    assert now("training")[kind] == pytest.approx(stored("training")[kind], rel=0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_32_ids_of_an_untrained_model_are_the_stored_ones(kind: str) -> None:
    assert now("ids_of_tiny_models")[kind] == stored("ids_of_tiny_models")[kind]


def test_plans_are_the_stored_ones_to_the_last_digit() -> None:
    assert now("plans") == stored("plans")


@pytest.mark.parametrize("fit", stored("laws"))
def test_laws_fitted_to_epochs_points_have_the_stored_constants(fit: str) -> None:
    """NumPy's exp and log differ in the last bit between processors, after which BFGS ends up to 7e-9 apart."""
    assert now("laws")[fit] == pytest.approx(stored("laws")[fit], rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", ITEMS)
def test_32_ids_of_smollm2_are_the_stored_ones(dtype: str) -> None:
    assert now("ids_of_smollm2")[dtype] == stored("ids_of_smollm2")[dtype]


@pytest.mark.parametrize("shots", ["0 shots", "2 shots"])
@pytest.mark.parametrize("dtype", ITEMS)
def test_an_evaluation_has_the_stored_answers(dtype: str, shots: str) -> None:
    today, then = now("evaluation")[dtype][shots], stored("evaluation")[dtype][shots]
    assert today["accuracy"] == then["accuracy"]
    assert today["answers"] == then["answers"]
    assert len(then["answers"]) == ITEMS[dtype]
    assert today["logprobs"] == pytest.approx(then["logprobs"], rel=0, abs=1e-3)


def test_no_stored_id_was_nearly_another() -> None:
    """Beyond what rounding does to float32's probabilities, so that the ids hold on every processor."""
    for name, margins in stored("margins_of_ids").items():
        assert margins["nats"] > 1e-3, name
        assert margins["probability"] > 1e-4, name


def test_every_stored_completion_is_32_ids_long() -> None:
    completions = [*stored("ids_of_tiny_models").values(), *stored("ids_of_smollm2").values()]
    assert {len(ids) for of_model in completions for ids in of_model.values()} == {32}


def test_every_topic_has_its_file() -> None:
    """And each but the margins, which no change of the code may decide, is compared with what is computed now."""
    assert {topic for topics in PROCESSES for topic in topics} | {"margins_of_ids"} == set(TOPICS)
