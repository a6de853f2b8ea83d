"""What an evaluation's numbers say, and of what they do not speak."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from nextword.base.fields import rebuilt
from nextword.evals.comparisons import pairs_of
from nextword.evals.design import Condition
from nextword.evals.results import Answer, Collected, ConditionResult, Notes
from nextword.evals.summary import Result, summarise
from nextword.evals.task import Item, PromptFormat, Scorer, Task, row_digests
from nextword.evals.template import Template

Cells = Mapping[
    tuple[Any, ...], np.ndarray
]  # (shots, variant, model, template) or a beginning of it → (seeds, permutations, items)


def collected(
    results: Cells,
    groups: Sequence[str] | None = None,
    name: str = "quiz",
    rows: Sequence[int] | None = None,
    **more: Any,
) -> Collected:
    """The answers of an evaluation that scored so; `rows` say which of a file's rows were asked."""
    count = next(iter(results.values())).shape[2]
    rows = range(count) if rows is None else rows
    texts = [{"text": f"question {row}"} for row in range(max(rows) + 1)]
    digests = row_digests(texts)
    items = tuple(
        Item("test", place, texts[row], None if groups is None else groups[place], digests[row])
        for place, row in enumerate(rows)
    )
    made = []
    for key, cube in results.items():
        shots, variant, model, template = (*key, *("plain", "model", "form")[len(key) - 1 :])
        for seed, permutations in enumerate(cube):
            for permutation, scores in enumerate(permutations):
                answers = tuple(
                    Answer(item, shots, (), (), score=float(score)) for item, score in zip(items, scores, strict=True)
                )
                made.append(ConditionResult(Condition(model, template, shots, seed, permutation, variant), answers))
    scorers = (Scorer("accuracy", "", lambda answer, gold, row: 0.0),)
    task = Task(name, items, (), PromptFormat(Template("", ()), "text", generates=True), scorers)
    return Collected(task, items, tuple(made), "raw", (), Notes(), 1.0, 0, **more)


def right(share: float, *shape: int, seed: int = 0) -> np.ndarray:
    """Right and wrong answers of items that are not equally hard."""
    generator = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(0, 0.2, shape[-1])
    return (generator.random(shape) < np.clip(share + hard, 0, 1)).astype(float)


def test_one_set_of_shots_is_never_spoken_of_as_four_shots() -> None:
    result = summarise(
        collected({(0,): right(0.5, 1, 1, 100), (4,): right(0.95, 1, 1, 100), (1,): right(0.5, 1, 3, 100)})
    )
    names = [line.name for line in result.rows]
    assert names == ["0 shots", "this one set of 4 shots", "this one set of 1 shot"]
    better = next(each for each in result.comparisons if "4 shots" in each.after)
    assert better.p < 0.001
    for each in result.comparisons:
        assert "this one set of" in each.sentence
        assert each.sentence.endswith("Another set may score differently: use --fewshot-seeds 5 or more")
    kept = json.loads(json.dumps(result.to_dict()))["rows"]
    assert [line["caveat"] for line in kept] == ["", "with this one set of shots", "with this one set of shots"]
    assert kept[1]["interval_covers"] == "other items"
    assert kept[2]["interval_covers"] == "other items and other permutations"


def test_shots_of_every_item_s_own_are_no_one_set() -> None:
    result = summarise(collected({(0,): right(0.5, 1, 1, 60), (4,): right(0.9, 1, 1, 60)}, shared_shots=False))
    assert [(line.name, line.caveat) for line in result.rows] == [("0 shots", ""), ("4 shots", "")]
    assert "set" not in result.comparisons[0].sentence


@pytest.mark.parametrize("seeds", [2, 4, 5])
def test_few_draws_say_that_five_are_wanted(seeds: int) -> None:
    result = summarise(collected({(0,): right(0.4, 1, 1, 80), (4,): right(0.8, seeds, 1, 80)}))
    said = f"from {seeds} few-shot seeds; use 5 or more" if seeds < 5 else ""
    assert result.rows[1].caveat == said
    assert result.comparisons[0].sentence.lower().endswith(said)
    assert result.rows[1].interval_covers == "other items and other few-shot seeds"


def test_p_and_interval_are_corrected_for_what_the_user_named_and_baselines_apart() -> None:
    results = {
        (0,): right(0.5, 1, 1, 150), (1,): right(0.6, 1, 1, 150, seed=1), (4,): right(0.66, 1, 1, 150, seed=2),
        (4, "random labels"): right(0.4, 1, 1, 150, seed=3), (0, "contextual"): right(0.5, 1, 1, 150, seed=4),
    }  # fmt: skip
    alone = summarise(collected({key: results[key] for key in [(0,), (1,), (4,)]}))
    result = summarise(collected(results))
    named = summarise(collected(results, calibrate=("contextual",)))
    assert [each.primary for each in result.comparisons] == [True, True, False, False]
    assert result.comparisons[:2] == alone.comparisons  # baselines nobody asked for take nothing from them
    for each in result.comparisons:
        assert each.level == each.comparison.level == 0.025
        assert each.p == min(1, 2 * each.comparison.p)
        assert (each.p < 0.05) == (not each.comparison.low <= 0 <= each.comparison.high)
    assert [(each.primary, each.comparisons) for each in named.families] == [(True, 3), (False, 1)]
    assert named.families[0].sentence == (
        "3 comparisons: p-values and intervals corrected together (Bonferroni; 98.3% intervals)"
    )
    assert "with baselines" in named.families[1].sentence


def test_what_is_asked_beside_the_usual_pairs_joins_the_primary_family() -> None:
    none, one, four = [("model", "form", shots, "plain") for shots in (0, 1, 4)]
    blind = ("model", "form", 4, "random labels")
    assert pairs_of([none, one, four, blind], {blind}) == {(none, one): True, (none, four): True, (four, blind): False}
    asked = pairs_of([none, one, four, blind], {blind}, [(one, four), (four, blind), (four, none)])
    assert asked == {(none, one): True, (none, four): True, (four, blind): True, (one, four): True}


def test_forms_and_models_are_compared_with_the_first_at_the_same_shots() -> None:
    choices = [(model, form, 0, "plain") for model in "ab" for form in "xy"]
    assert {(before[:2], after[:2]) for before, after in pairs_of(choices, ())} == {
        (("a", "x"), ("a", "y")), (("b", "x"), ("b", "y")), (("a", "x"), ("b", "x")), (("a", "y"), ("b", "y")),
    }  # fmt: skip


def test_power_is_that_of_each_comparison_s_own_error_and_level() -> None:
    results = {(0,): right(0.5, 1, 1, 120), (4,): right(0.6, 5, 1, 120, seed=1)}
    loose = summarise(collected(results), power=0.1)
    grouped = summarise(collected(results, [str(n // 10) for n in range(120)]), power=0.1)
    corrected = summarise(collected({**results, (8,): right(0.6, 5, 1, 120, seed=5)}), power=0.1)
    assert loose.power is not None
    assert loose.power.startswith("4 shots against 0 shots: to detect a true difference of 0.1 in 80% of runs, ")
    assert "120 items and 5 few-shot seeds" in loose.power
    found = [each.comparisons[0].visible for each in (loose, grouped, corrected)]
    assert found[0] < found[2]
    assert found[0] != found[1]
    assert len(corrected.power.splitlines()) == 2  # type: ignore[union-attr]


def test_power_without_a_comparison_says_what_to_name() -> None:
    found = summarise(collected({(0,): right(0.6, 1, 1, 40)}), power=0.1).power
    assert found == "--power needs a comparison, and there is none: name several --shots, --template or --model"


def test_a_draw_and_order_has_a_row_of_its_own() -> None:
    cube = right(0.7, 3, 2, 40)
    rows = summarise(collected({(0,): right(0.5, 1, 1, 40), (4,): cube})).seeds_table()
    assert len(rows) == 7
    assert rows[-1]["fewshot_seed"] == 2
    assert rows[-1]["permutation"] == 1
    assert [row["accuracy"] for row in rows[1:]] == pytest.approx(list(cube.mean(2).ravel()))
    assert {row["effective_shots"] for row in rows[1:]} == {4.0}


def test_orders_are_tested_where_items_are_independent() -> None:
    results = {(0,): right(0.5, 1, 1, 60), (4,): right(0.6, 2, 3, 60)}
    free = summarise(collected(results)).rows
    assert free[0].permutations_test is None
    assert free[1].permutations_test is not None
    assert free[1].permutations_test.freedom == 2
    assert summarise(collected(results, [str(n // 3) for n in range(60)])).rows[1].permutations_test is None


@pytest.mark.parametrize(("items", "groups"), [(1, None), (1, ["a"]), (9, ["a"] * 9)])
def test_what_cannot_be_known_is_null_in_json_and_kept_as_endless(items: int, groups: list[str] | None) -> None:
    results = {(0,): right(0.5, 1, 1, items) - 1.5, (4,): right(0.6, 5, 1, items)}
    result = summarise(collected(results, groups), power=0.1)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"][0]["score"]["low"] is None
    assert rebuilt(Result, json.loads(json.dumps(asdict(result)))) == result  # as the store has it
    assert result.rows[0].score.low == -math.inf
