"""Filters make of texts what lm-evaluation-harness's own make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.evals import filters
from nextword.evals.task import Filter

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "oracles/harness/files/filters.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("steps", sorted({json.dumps(case["chain"]) for case in CASES}))
def test_a_chain_answers_as_the_harness_s_own(steps: str) -> None:
    chain = Filter("x", tuple((name, options) for name, options in json.loads(steps)))
    filters.check(chain)
    cases = [case for case in CASES if json.dumps(case["chain"]) == steps]
    assert len(cases) > 10
    found = [(case["texts"], filters.apply(chain, case["texts"], case["row"])) for case in cases]
    assert found == [(case["texts"], case["answer"]) for case in cases]


def test_a_match_that_is_not_there_is_the_fallback_and_no_error() -> None:
    third = Filter("third", (("regex", {"regex_pattern": "[0-9]", "group_select": 2, "fallback": "?"}),))
    assert filters.apply(third, ["1 2 3", "1 2", ""], {}) == ["3", "?", "?"]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (("regx", {}), "Did you mean regex"),
        (("regex", {"patern": "x"}), "has no option 'patern'"),
        (("regex", {"regex_pattern": "(a"}), "not a regular expression"),
        (("multi_choice_regex", {"regexes_to_ignore": ["["]}), "not a regular expression"),
        (("regex", {"regex_pattern": 7}), "not a regular expression"),
        (("regex", {"group_select": "last"}), "group_select"),
        (("take_first_k", {}), "'k'"),
        (("take_first_k", {"k": "two"}), "'k'"),
        (("map", {"mapping_dict": ["A", "B"]}), "mapping_dict"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_before_a_model_is_loaded(step: tuple[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        filters.check(Filter("x", (step,)))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("row", [{}, {"choices": "ABCD"}, {"choices": ["x"] * 27}])
def test_letters_need_a_column_of_at_most_26_choices(row: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a column 'choices'"):
        filters.apply(Filter("x", (("multi_choice_regex", {}),)), ["(A)"], row)
