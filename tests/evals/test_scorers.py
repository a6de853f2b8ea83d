"""Scorers of free answers, against values worked out by hand, and what they refuse."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_tasks import table_task

from nextword import load
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals import scorers
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.export import write_results
from nextword.evals.scorers import contains, exact, f1, last_number, normalized, number, with_scorer
from nextword.evals.store import opened
from nextword.evals.summary import summarise
from nextword.evals.task import Task
from nextword.evals.task_loader import open_task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "sums.jsonl"
    rows = [{"sum": f"{n}+{n}", "answer": f"= {2 * n}"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table_task(path, "{sum}\n{answer}", generate=True, max_tokens=8)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model("transformer")))


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [(" Paris\n", "paris", 1), ("Paris.", "Paris", 0), ("", " ", 1), ("new york", "New York", 1), ("a b", "a  b", 0)],
)
def test_exact_is_the_same_text_but_for_case_and_the_spaces_around(answer: str, gold: str, score: float) -> None:
    assert exact(answer, gold) == score


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("It is Paris, of course.", "paris", 1),
        ("comparison", "paris", 0),
        ("Parisian", "Paris", 0),
        ("in new\n  york city", "New York", 1),
        ("STRASSE 5", "Straße", 1),
        ("cafe\u0301 noir", "café", 1),
        ("it costs $5.", "$5", 1),
        ("it costs $50", "$5", 0),
        ("C++ it is", "C++", 1),
        ("首都は東京です", "東京", 1),
        ("", "x", 0),
        ("x", "", 0),
        ("", "", 1),
        ("a.b", "a?b", 0),
    ],
)
def test_contains_finds_the_gold_text_as_whole_words(answer: str, gold: str, score: float) -> None:
    assert contains(answer, gold) == score


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7", "7"),
        ("It costs 1,234.", "1234"),
        ("1,234,567.50 dollars", "1234567.50"),
        ("-5", "-5"),
        ("x=-5", "-5"),
        ("\u22125 degrees", "-5"),
        ("-$5", "-5"),
        ("$-5.25", "-5.25"),
        ("3-4", "4"),
        ("(2)-4", "4"),
        ("+7", "7"),
        (".5", "0.5"),
        ("0.1 and 2.", "2"),
        ("1, 2, 3", "3"),
        ("1,2", "2"),
        ("1,2345", "2345"),
        ("50%", "50"),
        ("1e3", "1000"),
        ("2.5E-3", "0.0025"),
        ("x2", "2"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1000", "0.1"),
        ("none", None),
        ("", None),
        ("e3", "3"),
        ("9e9999999999", "9999999999"),
    ],
)
def test_the_last_number_is_read_as_it_is_written(text: str, value: str | None) -> None:
    from decimal import Decimal

    assert last_number(text) == (None if value is None else Decimal(value))


def test_numbers_are_equal_in_value_to_the_last_digit() -> None:
    assert number("So it is 1,234.0.", "#### 1234") == 1
    assert number("12345678901234567890.1", "12345678901234567890.2") == 0  # the same as floats
    assert number("0.30000000000000001", "0.3") == 0
    assert number("seven", "7") == 0


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("the big cat", "cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat dog", "cat dog dog", 2 / 3),  # two of three in common
        ("in 1912, on the Titanic", "Titanic", 2 * (1 / 4) / (1 / 4 + 1)),
        ("dog", "cat", 0.0),
        ("U.S.A.", "usa", 1.0),
        ("an", "the", 1.0),
        ("A", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "", 1.0),
    ],
)
def test_f1_is_squads(answer: str, gold: str, score: float) -> None:
    assert f1(answer, gold) == pytest.approx(score, abs=1e-12)


WORDS = st.lists(st.sampled_from(["a", "the", "cat", "Cat", "dog.", "!", "é", "7", "an"]), max_size=6).map(" ".join)


@given(WORDS, WORDS)
def test_f1_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    assert f1(one, other) == f1(other, one)
    assert 0 <= f1(one, other) <= 1
    assert f1(one, one) == 1


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12))
def test_a_number_written_with_commas_is_itself(value: Any) -> None:
    assert last_number(f"that makes {value:,} in all.") == value


def scored(task: Task, scorer: Any, answer: str, gold: Any) -> float:
    return with_scorer(task, scorer).scorers[0].function(answer, gold, {})


def test_several_right_answers_score_as_the_best_of_them(task: Task) -> None:
    assert scored(task, "f1", "the big cat", ["dog", "cat"]) == pytest.approx(2 / 3)
    assert scored(task, "exact", "cat", ["dog", "cat"]) == 1
    assert scored(task, "contains", "a cat", ["dog", "bird"]) == 0


def test_a_pattern_s_group_or_whole_match_is_the_answer(task: Task) -> None:
    assert scored(task, "regex:answer is (.*?)\\.", "I think the answer is Paris. Yes.", "paris") == 1
    assert scored(task, "regex:[0-9]+", "first 7, then 8", "7") == 1
    assert scored(task, "regex:(x)|y", "y", "y") == 0  # its group found nothing
    assert scored(task, "regex:x", "y", "") == 0
    assert scored(task, "regex:a:b", "a:b", "A:B") == 1


def test_a_pattern_that_would_search_for_years_is_stopped(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_SECONDS", 0.05)
    with pytest.raises(UsageError, match=r"took more than 0\.05 s on one answer") as told:
        scored(task, "regex:(a+)+$", "a" * 60 + "!", "a")
    assert "\n" not in str(told.value)
    assert scored(task, "regex:(a+)+$", "aaa", "aaa") == 1


def test_a_pattern_works_in_a_thread(task: Task) -> None:
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(scored(task, "regex:[0-9]+", "is 7", "7")))
    thread.start()
    thread.join()
    assert found == [1]


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("nubmer", "scorer 'nubmer' is not known. Did you mean number"),
        ("regex", "regex:PATTERN"),
        ("regex:", "has no pattern"),
        ("regex:(", "is not a regular expression"),
        ("os.system", "scorer 'os.system' is not known"),
    ],
)
def test_an_unknown_scorer_is_refused_in_one_line(scorer: str, said: str, task: Task) -> None:
    with pytest.raises(UsageError) as told:
        with_scorer(task, scorer)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_choices_have_no_scorer(reviews: Path) -> None:
    with pytest.raises(UsageError, match="reviews the model chooses among labels"):
        with_scorer(table_task(reviews, "{text}: {label}"), "f1")


def test_a_gold_answer_without_a_number_is_refused_before_anything_is_asked(task: Task) -> None:
    words = replace(task, items=tuple(replace(item, values={**item.values, "answer": "ten"}) for item in task.items))
    with pytest.raises(UsageError, match="the correct answer of row 1, 'ten', contains no number"):
        with_scorer(words, "number")


def test_a_function_scores_answers_and_its_scores_reach_table_and_files(
    task: Task, model: LanguageModel, tmp_path: Path
) -> None:
    seen: list[tuple[str, Any, Any]] = []

    def nearness(answer: str, gold: Any, row: Any) -> float:
        seen.append((answer, gold, row["sum"]))
        return (len(answer) % 5) / 4

    scored_task, design = with_scorer(task, nearness), Design(shots=(0, 1), fewshot_seeds=2, limit=5)
    with opened(None) as store:
        collected = EvalRun({"form": scored_task}, [model], design, ScoringConfig(), store).run()
    result = summarise(collected, 0)
    assert result.to_dict()["metric"] == "nearness"
    for own in collected.conditions:
        expected = [(len(answer.written) % 5) / 4 for answer in own.answers]
        assert list(own.scores) == expected
        assert own.metrics["nearness"] == pytest.approx(sum(expected) / 5)
    assert {gold for _, gold, _ in seen} <= {f"= {2 * n}" for n in range(30)}
    write_results(tmp_path / "out", collected, result)
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert all(sample["scores"]["nearness"] == sample["score"] for sample in samples)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "good", None])
def test_a_function_s_score_outside_0_to_1_is_refused(value: Any, task: Task) -> None:
    with pytest.raises(UsageError, match="the scorer scorer gave"):
        scored(task, lambda answer, gold, row: value, "x", "x")


def test_a_task_s_own_scorers_give_way() -> None:
    task = open_task("arithmetic")["arithmetic"]
    assert [scorer.name for scorer in task.scorers] == ["strict", "last-number"]
    assert [scorer.name for scorer in with_scorer(task, "number").scorers] == ["number"]


@pytest.mark.parametrize(
    ("answer", "strict"), [(" 1,234.", 1), ("1234", 1), ("It is 1234", 0), ("1234 apples", 0), ("-1234", 0)]
)
def test_a_pattern_s_number_counts_by_its_value(answer: str, strict: float) -> None:
    scorer = open_task("arithmetic")["arithmetic"].scorers[0]
    assert scorer.function(answer, "1234", {}) == strict


@pytest.mark.parametrize(
    ("answer", "gold", "score"), [(" St. Paul.\n", "st paul", 1), ("Paris!", "paris", 1), ("Paris, France", "paris", 0)]
)
def test_normalized_ignores_punctuation_too(answer: str, gold: str, score: float) -> None:
    assert normalized(answer, gold) == score
