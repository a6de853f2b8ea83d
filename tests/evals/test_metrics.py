"""Metrics against scikit-learn, against lm-evaluation-harness's own functions, and against values made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextword.base import UsageError
from nextword.evals import metrics
from nextword.evals.answers import Answer
from nextword.evals.task import Encoded, Item, Likelihood, Metric, Output, Task

MADE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "oracles/harness/files/metrics.json").read_text(encoding="utf-8")
)


def answer(logprobs: list[float], gold: Any, greedy: int = -1, values: dict[str, float] | None = None) -> Answer:
    """An answer among choices of one token each."""
    found = tuple(Likelihood((each,), n == greedy) for n, each in enumerate(logprobs))
    encoded = tuple(Encoded((1,), (n,)) for n in range(len(logprobs)))
    return Answer(Item("test", 0, {}), 0, (), encoded, found, gold=gold, values=values or {})


def over_all(name: str, answers: list[Answer], output: Output = "multiple_choice") -> float:
    task = Task("t", output, (), (), None, metrics=(Metric(name),))  # type: ignore[arg-type]
    return metrics.aggregate(task, answers)[name]


@pytest.mark.parametrize("case", MADE["choices"], ids=lambda case: f"{max(map(max, case['pairs'])) + 1} labels")
def test_f1_matthews_and_brier_are_those_of_the_harness(case: dict[str, Any]) -> None:
    pairs = [(gold, said) for gold, said in case["pairs"]]
    assert metrics.matthews(pairs) == pytest.approx(case["mcc"], abs=1e-12)
    if "f1" in case:
        assert metrics.f1(pairs) == pytest.approx(case["f1"], abs=1e-12)
    answers = [answer(logprobs, gold) for logprobs, (gold, _) in zip(case["logprobs"], pairs, strict=True)]
    assert over_all("brier_score", answers) == pytest.approx(case["brier_score"], abs=1e-12)


def test_f1_and_matthews_are_those_of_scikit_learn_where_it_is() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(5)
    for labels in (2, 3, 5):
        gold, said = draw.integers(0, labels, (2, 40))
        pairs = list(zip(gold.tolist(), said.tolist(), strict=True))
        assert metrics.matthews(pairs) == pytest.approx(sklearn.matthews_corrcoef(gold, said))
        if labels == 2:
            assert metrics.f1(pairs) == pytest.approx(sklearn.f1_score(gold, said))


def test_f1_matthews_and_brier_by_hand() -> None:
    pairs = [(1, 1)] * 6 + [(0, 0)] * 3 + [(0, 1)] * 1 + [(1, 0)] * 2  # tp 6, tn 3, fp 1, fn 2
    assert metrics.f1(pairs) == pytest.approx(12 / 15)
    assert metrics.matthews(pairs) == pytest.approx((6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5))
    assert metrics.f1([(0, 0)]) == 0
    shares = [0.5, 0.3, 0.2]
    asked = answer([math.log(share) - 7 for share in shares], gold=1)  # only their ratios count
    assert over_all("brier_score", [asked]) == pytest.approx(0.25 + 0.49 + 0.04)
    assert over_all("brier_score", [asked, answer([0.0, -900.0], gold=0)]) == pytest.approx(0.78 / 2)


def test_exact_match_of_texts_is_that_of_the_harness() -> None:
    wrong = [
        case
        for case in MADE["exact_match"]
        if metrics.score_text(Metric("exact_match", options=case[0]), case[1], case[2]) != case[3]
    ]
    assert len({case[3] for case in MADE["exact_match"]}) == 2
    assert wrong == []


def test_exact_match_among_choices_asks_whether_greedy_decoding_writes_the_right_one() -> None:
    answers = [answer([-1.0, -2.0], gold=0, greedy=0), answer([-1.0, -2.0], gold=1, greedy=0)]
    assert over_all("exact_match", answers) == 0.5
    assert over_all("exact_match", [answer([-1.0, -2.0], gold=[0, 1], greedy=1)]) == 1
    assert over_all("exact_match", [answer([-1.0, -2.0], gold=-1, greedy=1)]) == 0  # the right one is none of them


def test_a_gold_that_is_none_of_the_choices_is_never_right() -> None:
    lost, found = answer([-1.0, -2.0], gold=-1), answer([-1.0, -2.0], gold=0)
    assert not any(lost.right(choice) for choice in (0, 1))
    # p = (e, 1) / (1 + e); with nothing right the score is the sum of the squares of both
    share = math.e / (1 + math.e)
    assert over_all("brier_score", [lost]) == pytest.approx(share**2 + (1 - share) ** 2)
    assert over_all("brier_score", [found]) == pytest.approx(2 * (1 - share) ** 2)


def test_perplexities_weigh_texts_by_their_length() -> None:
    values = [{"logprob": -20.0, "words": 4, "bytes": 16}, {"logprob": -10.0, "words": 6, "bytes": 24}]
    answers = [answer([0.0], 0, values=each) for each in values]
    assert over_all("word_perplexity", answers, "loglikelihood_rolling") == pytest.approx(math.exp(30 / 10))
    assert over_all("byte_perplexity", answers, "loglikelihood_rolling") == pytest.approx(math.exp(30 / 40))
    assert over_all("bits_per_byte", answers, "loglikelihood_rolling") == pytest.approx(30 / 40 / math.log(2))
    assert over_all("perplexity", answers, "loglikelihood") == pytest.approx(math.exp(15))


@pytest.mark.parametrize(
    ("metric", "output", "said"),
    [
        (Metric("acc_nrm"), "multiple_choice", "Did you mean acc_norm"),
        (Metric("acc"), "generate_until", "not known for generate_until"),
        (Metric("acc", options={"ignore_case": True}), "multiple_choice", "no option 'ignore_case'"),
        (Metric("exact_match", options={"regexes_to_ignore": ["("]}), "generate_until", "not a regular expression"),
    ],
)
def test_a_metric_that_cannot_be_taken_is_refused_by_name(metric: Metric, output: Output, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        metrics.check(metric, output)
    assert said in str(refused.value)
