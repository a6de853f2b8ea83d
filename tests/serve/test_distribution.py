"""The compact form of a row of logits: how far what is computed from it is from the exact softmax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nextword
from nextword.engine import SamplingParams
from nextword.engine.sampler import Distribution
from nextword.serve.distribution import BINS, compact

PROMPTS = ["The capital of France is", "I like to eat", "def f(x):\n    return", "1 + 1 ="]
TEMPERATURES = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)
TOP, BOUND = 128, 1.3e-5
CUTS: list[dict[str, Any]] = [{}, {"top_k": 5}, {"top_k": 128}, {"top_p": 0.3}, {"top_p": 0.9}, {"min_p": 0.1},
                              {"top_k": 40, "top_p": 0.95, "min_p": 0.05}]  # fmt: skip


class Bytes:
    """A tokenizer as far as `compact` asks for one."""

    def token_bytes(self, id: int) -> bytes:
        return b"%d" % id


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> nextword.LanguageModel:
    return nextword.load(smollm2_path)


def computed(form: dict[str, Any], sampling: SamplingParams) -> tuple[NDArray[np.float64], float] | None:
    """Probabilities of the largest, and of all others together, as /v1/next documents; None if a cut is in a bin."""
    t = sampling.temperature
    weights = np.exp(np.array([item["logit"] for item in form["top"]]) / t)
    rest = sum(b["count"] * np.exp(b["mean"] / t) * (1 + b["variance"] / (2 * t * t)) for b in form["rest"])
    if sampling.top_k:
        weights[sampling.top_k :], rest = 0, 0.0
    if sampling.top_p < 1:
        kept = np.searchsorted(weights.cumsum(), sampling.top_p * (weights.sum() + rest)) + 1
        if kept > TOP:
            return None
        weights[kept:], rest = 0, 0.0
    if sampling.min_p:
        if weights[-1] >= sampling.min_p:
            return None
        weights[weights < sampling.min_p], rest = 0, 0.0
    return weights / (weights.sum() + rest), rest / (weights.sum() + rest)


def worst(logits: NDArray[np.float32]) -> Iterator[float]:
    """The worst relative error of a probability at each of the settings."""
    form, order = compact(logits, Bytes(), TOP), np.argsort(-logits, kind="stable")  # type: ignore[arg-type]
    assert len(form["rest"]) <= BINS
    for temperature in TEMPERATURES:
        for cut in CUTS if temperature in (0.7, 2) else CUTS[:1]:
            sampling = SamplingParams(temperature=temperature, **cut)
            if (found := computed(form, sampling)) is None:
                continue
            ids, drawn = Distribution(logits, sampling, whole=True).probabilities()
            exact = np.zeros(logits.size)
            exact[ids] = drawn
            own, others = exact[order[:TOP]], exact[order[TOP:]].sum()
            assert ((own > 0) == (found[0] > 0)).all()
            yield float(np.abs(found[0][own > 0] / own[own > 0] - 1).max())
            yield abs(found[1] / others - 1) if others else found[1]


def test_no_probability_is_off_by_more_than_the_documented_bound(model: nextword.LanguageModel) -> None:
    for prompt in PROMPTS:
        assert max(worst(model.engine.logits(model.encode(prompt)).astype(np.float32))) <= BOUND


@pytest.mark.parametrize("spread", [0.5, 2, 3])
def test_nor_is_one_of_a_bell_of_logits(spread: float) -> None:
    assert max(worst(np.random.default_rng(1).normal(0, spread, 20_000).astype(np.float32))) <= BOUND


def test_equal_logits_are_one_bin() -> None:
    form = compact(np.zeros(1000, np.float32), Bytes(), TOP)  # type: ignore[arg-type]
    assert form["rest"] == [{"count": 1000 - TOP, "mean": 0.0, "variance": 0.0}]
