"""How answers are chosen among choices. Cases: reference/prompting.md."""

from __future__ import annotations

import numpy as np
import pytest

from nextword.evals.results import Answer, scores_of
from nextword.evals.task import Encoded, Item, Likelihood


def answer(choices: list[str], logprobs: list[float], gold: int = 0, sizes: list[int] | None = None) -> Answer:
    sizes = sizes or [1] * len(choices)
    found = tuple(Likelihood((p / n,) * n, False) for p, n in zip(logprobs, sizes, strict=True))
    encoded = tuple(Encoded((1,), tuple(range(n))) for n in sizes)
    return Answer(Item("test", 0, {}), 0, (), encoded, found, choices=tuple(choices), gold=gold)


def test_the_length_of_a_choice_counts_in_characters_bytes_or_tokens() -> None:
    asked = answer(["yes", "not at all", "日本語です"], [-3.2, -8.0, -6.0], sizes=[1, 3, 5])
    best = {name: int(np.argmax(scores_of(asked, name))) for name in ("raw", "chars", "bytes", "tokens")}
    assert best == {"raw": 0, "chars": 1, "bytes": 2, "tokens": 2}
    assert scores_of(asked, "chars") == pytest.approx([-3.2 / 3, -8.0 / 10, -6.0 / 5])
    assert scores_of(asked, "bytes") == pytest.approx([-3.2 / 3, -8.0 / 10, -6.0 / 15])
    assert scores_of(asked, "tokens") == pytest.approx([-3.2, -8.0 / 3, -6.0 / 5])
    assert scores_of(asked, "pmi", [-1.0, -7.0, -2.0]) == pytest.approx([-2.2, -1.0, -4.0])
