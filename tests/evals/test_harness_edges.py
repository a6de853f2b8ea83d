"""Task files and rows that are odd: asked as lm-evaluation-harness asks where it does, and never silently otherwise.

The expected texts are what lm-eval 0.4.13's request builder gave for the same rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.evals import harness
from nextword.evals.harness import draws, load_harness_task, read_yaml
from nextword.evals.task import Task, requests

ROWS = [
    {"q": "one", "a": 0},
    {"q": "two", "a": 1},
    {"q": "three", "a": 1},
    {"q": "four", "a": 0},
    {"q": "five", "a": 1},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Q {{q}}",
    "doc_to_target": "a",
    "doc_to_choice": ["no", "yes"],
}
FREE = {
    "output_type": "generate_until",
    "doc_to_text": "Q {{q}}",
    "doc_to_target": "a",
    "generation_kwargs": {"until": "\n"},
}


def loaded(folder: Path, config: dict[str, Any], rows: list[Any] | str, pool: list[Any] | None = None) -> Task:
    """A task of `rows`, with shots from `pool`."""
    reader, suffix = ("csv", "csv") if isinstance(rows, str) else ("json", "jsonl")
    files = {"test": f"test.{suffix}"}
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"test.{suffix}").write_text(text, encoding="utf-8")
    splits = {"test_split": "test"}
    if pool is not None:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool), encoding="utf-8")
        files["train"], splits["training_split"] = "train.jsonl", "train"
    whole = {"task": "t", "dataset_path": reader, "dataset_kwargs": {"data_files": files}, **splits, **config}
    (folder / "task.yaml").write_text(json.dumps(whole), encoding="utf-8")
    return load_harness_task(folder / "task.yaml")


def first(task: Task, count: int) -> tuple[str, str]:
    """What is asked first, with that many shots of the harness's own drawing."""
    found = requests(task, draws(task, count)[0] if count else [], task.items[0])[0]
    return found.context, found.continuation


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"fewshot_config": {"fewshot_indices": [3, 4, 0]}, "fewshot_split": "train"},
            ("Q four no\n\nQ one no\n\nQ one", " no"),
        ),
        ({"doc_to_text": "a", "doc_to_choice": "{{['A ' + q, 'B ' + q]}}", "doc_to_target": "q"}, None),
        ({"doc_to_target": "{{ 'yes' if a else 'no' }}"}, ("Q four no\n\nQ one no\n\nQ one", " no")),
    ],
)
def test_shots_of_choices(changes: dict[str, Any], expected: tuple[str, str] | None, tmp_path: Path) -> None:
    task = loaded(tmp_path, CHOICE | changes, ROWS, ROWS)
    assert first(task, 2) == (expected or ("A four four\n\nA one one\n\nA one", " one"))


def test_a_shot_without_an_answer_ends_with_its_question(tmp_path: Path) -> None:
    pool = [{"q": "x", "a": None}, {"q": "y", "a": None}, {"q": "w", "a": "b"}]
    assert first(loaded(tmp_path, FREE, [{"q": "x", "a": "b"}], pool), 2) == ("Q yQ xQ x", "")


def test_a_choice_of_no_characters_is_an_answer_all_the_same(tmp_path: Path) -> None:
    task = loaded(
        tmp_path, CHOICE | {"doc_to_choice": ["", "yes"], "fewshot_config": {"sampler": "first_n"}}, ROWS, ROWS
    )
    assert first(task, 2) == ("Q one \n\nQ two yes\n\nQ one", " ")


def test_numbers_ask_as_text_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    for changes in ({"doc_to_text": "a"}, {"doc_to_text": "{{a}}"}, {"doc_to_text": 7}):
        task = loaded(tmp_path, FREE | changes | {"doc_to_target": "q"}, ROWS)
        assert first(task, 0) == ("7" if changes["doc_to_text"] == 7 else "0", "")


def test_labels_that_a_gap_made_floats_are_indices_all_the_same(tmp_path: Path) -> None:
    task = loaded(tmp_path, CHOICE, "q,a\nx,1\ny,0\nz,\n")
    assert [task.form.gold(item.values) for item in task.items] == [1, 0, -1]
    assert task.form.shot(task.items[0].values) == "Q x yes\n\n"


def test_labels_that_are_true_or_false_are_indices(tmp_path: Path) -> None:
    task = loaded(tmp_path, CHOICE, [{"q": "x", "a": True}, {"q": "y", "a": False}])
    assert repr([task.form.gold(item.values) for item in task.items]) == "[1, 0]"


def test_choices_that_are_numbers_are_asked_and_measured_as_text(tmp_path: Path) -> None:
    task = loaded(tmp_path, CHOICE | {"doc_to_choice": "c"}, [{"q": "x", "a": 1, "c": [10, 200]}])
    assert first(task, 0) == ("Q x", " 10")
    assert task.form.choices(task.items[0].values) == ["10", "200"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_tokens": 7}, 7), ({"max_completion_tokens": 8}, 8), ({"max_new_tokens": 9, "max_gen_toks": 3}, 3),
        ({}, 256),
    ],
)  # fmt: skip
def test_the_length_of_an_answer_has_several_names_and_the_harness_s_own_goes_first(
    options: dict[str, int], expected: int, tmp_path: Path
) -> None:
    task = loaded(tmp_path, FREE | {"generation_kwargs": {"until": ["\n"], **options}}, ROWS)
    assert task.generation.max_tokens == expected


def test_options_of_groups_of_tasks_change_nothing_in_one(tmp_path: Path) -> None:
    listed = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    assert dict(loaded(tmp_path, CHOICE | {"metric_list": listed}, ROWS).metrics[0].options) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"metric_list": [{"metric": "acc", "aggregation": "median"}]},
            "'acc' makes its mean over all items, not",
        ),
        ({"metric_list": [{"metric": "f1", "aggregation": "mean"}]}, "'f1' makes its f1 over all items, not 'mean'"),
        ({"doc_to_choice": "{{ [] }}"}, "gives no choices for a row"),
        ({"generation_kwargs": {"max_gen_toks": 0}}, "max_gen_toks is 0"),
        ({"repeats": -1}, "repeats is -1"),
        ({"num_fewshot": -2}, "num_fewshot is -2"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        loaded(tmp_path, CHOICE | changes, ROWS)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_shot_that_lacks_a_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    samples = {"fewshot_config": {"sampler": "first_n", "samples": [{"q": "x", "a": 1}, {"q": "y", "label": 1}]}}
    task = loaded(tmp_path, CHOICE | samples, ROWS)
    assert first(task, 1) == ("Q x yes\n\nQ one", " no")
    with pytest.raises(UsageError, match=r"a row has no column 'a'\. There is: q, label"):
        first(task, 2)


def test_a_file_is_read_once_however_often_it_is_included(tmp_path: Path) -> None:
    for depth in range(16):  # two files a floor, each with both of the floor below: 65,536 ways down
        for name in "ab":
            below = "" if depth == 15 else f"include: [a{depth + 1}.yaml, b{depth + 1}.yaml]\n"
            (tmp_path / f"{name}{depth}.yaml").write_text(f"{below}description: {name}{depth}\n")
    opened: list[Path] = []
    read_text, path = harness.read_text, tmp_path / "a0.yaml"

    def counted(file: Path, limit: int) -> str:
        opened.append(file)
        return read_text(file, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "read_text", counted)
        assert read_yaml(path) == {"description": "a0"}
    assert len(opened) == len(set(opened)) == 31
