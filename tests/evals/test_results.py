"""How answers are chosen, filtered and scored. Cases: reference/prompting.md."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nextword.base import UsageError
from nextword.evals import filters, metrics
from nextword.evals.results import Answer, scores_of
from nextword.evals.task import Encoded, Item, Likelihood


def answer(choices: list[str], logprobs: list[float], gold: int = 0, sizes: list[int] | None = None) -> Answer:
    sizes = sizes or [1] * len(choices)
    found = tuple(Likelihood((p / n,) * n, False) for p, n in zip(logprobs, sizes, strict=True))
    encoded = tuple(Encoded((1,), tuple(range(n))) for n in sizes)
    return Answer(Item("test", 0, {}), 0, (), encoded, found, choices=tuple(choices), gold=gold, values={})


def test_the_length_of_a_choice_counts_in_characters_bytes_or_tokens() -> None:
    asked = answer(["yes", "not at all", "日本語です"], [-3.2, -8.0, -6.0], sizes=[1, 3, 5])
    best = {name: int(np.argmax(scores_of(asked, name))) for name in ("raw", "chars", "bytes", "tokens")}
    assert best == {"raw": 0, "chars": 1, "bytes": 2, "tokens": 2}
    assert scores_of(asked, "chars") == pytest.approx([-3.2 / 3, -8.0 / 10, -6.0 / 5])
    assert scores_of(asked, "bytes") == pytest.approx([-3.2 / 3, -8.0 / 10, -6.0 / 15])
    assert scores_of(asked, "tokens") == pytest.approx([-3.2, -8.0 / 3, -6.0 / 5])
    assert scores_of(asked, "pmi", [-1.0, -7.0, -2.0]) == pytest.approx([-2.2, -1.0, -4.0])


def test_any_of_several_gold_answers_is_right() -> None:
    one, several = answer(["a", "b", "c"], [-1.0] * 3, gold=1), answer(["a", "b", "c"], [-1.0] * 3)
    several = replace(several, gold=[0, 2])
    assert [one.right(n) for n in range(3)] == [False, True, False]
    assert [several.right(n) for n in range(3)] == [True, False, True]
    assert several.choosing([0.1, 0.2, 0.7], "raw").values == {"raw": 1.0}
    assert several.choosing([0.1, 0.7, 0.2], "raw").values == {"raw": 0.0}


STRICT = Filter("strict", (("regex", {}), ("take_first", {})))
FLEXIBLE = Filter(
    "flexible",
    (("regex", {"group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}), ("take_first", {})),
)
EXACT = Metric("exact_match", options={"regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"], "ignore_case": True})


@pytest.mark.parametrize(
    ("text", "gold", "strict", "flexible"),
    [
        ("3 + 4 = 7 so the answer is 7 apples.", "#### 7", 0.0, 1.0),
        (" 1200 + 34 = 1234.\n#### 1,234.", "x\n#### 1,234", 1.0, 1.0),
        ("no number", "#### 1", 0.0, 0.0),
    ],
)
def test_gsm8k_s_two_filters(text: str, gold: str, strict: float, flexible: float) -> None:
    assert metrics.score_text(EXACT, gold, filters.apply(STRICT, [text], {})) == strict
    assert metrics.score_text(EXACT, gold, filters.apply(FLEXIBLE, [text], {})) == flexible


def test_each_filter_does_what_its_name_says() -> None:
    def after(name: str, texts: list[str], **options: object) -> object:
        chain = Filter("x", ((name, options),))
        filters.check(chain)
        return filters.apply(chain, texts, {"choices": ["red wine", "red", "blue"]})

    assert after("take_first", ["a", "b"]) == "a"
    assert after("take_first_k", ["a", "b", "c"], k=2) == ["a", "b"]
    assert after("majority_vote", ["a", "b", "b"]) == ["b"]
    assert after("remove_whitespace", [" a "]) == ["a"]
    assert after("lowercase", ["A"]) == ["a"]
    assert after("uppercase", ["a"]) == ["A"]
    assert after("map", ["1", "2"], mapping_dict={"1": "yes"}, default_value="no") == ["yes", "no"]
    letters = {"regex_pattern": r"(\([A-Z]\))", "ignore_case": True, "ignore_punctuation": True}
    said = ["it is (B).", "Red, wine!", "answer: C", "none"]
    assert after("multi_choice_regex", said, **letters) == ["(B)", "(A)", "(C)", "[invalid]"]
    with pytest.raises(UsageError, match="not a regular expression"):
        after("regex", ["a"], regex_pattern="(")


def test_exact_match_takes_any_of_several_answers_and_ignores_what_it_is_told_to() -> None:
    plain = Metric("exact_match")
    assert metrics.score_text(plain, ["Paris", "paris"], "paris") == 1
    assert metrics.score_text(plain, "Paris", "paris") == 0
    loose = Metric("exact_match", options={"ignore_case": True, "ignore_punctuation": True, "ignore_numbers": True})
    assert metrics.score_text(loose, "Paris 7!", "paris ") == 1


def test_metrics_over_all_items_are_those_of_closed_forms() -> None:
    pairs = [(1, 1), (1, 0), (0, 1), (0, 0), (1, 1), (0, 0), (0, 0)]
    assert metrics.f1(pairs) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    gold, said = np.array(pairs).T
    assert metrics.matthews(pairs) == pytest.approx(np.corrcoef(gold, said)[0, 1])
    assert metrics.matthews([(0, 0), (1, 0)]) == 0
    asked = answer(["a", "b"], [math.log(0.6), math.log(0.2)], gold=1)
    assert metrics._brier(asked) == pytest.approx(0.75**2 + 0.75**2)
