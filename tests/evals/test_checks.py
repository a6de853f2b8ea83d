"""What is likely not meant is told, and does not pass in silence: newlines, spaces, choices, shots, rows not scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextword import load
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals import evaluate
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.store import opened
from nextword.evals.task import Task
from nextword.evals.task_loader import TaskOptions, open_task, read_templates

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2], "shop": n // 4} for n in range(20)]
HELD_BACK = "4 of 20 rows are reserved for shots and not scored; use --shots-from to score all"
FORM = "{text}: {label}"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model()))


def lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(folder: Path, template: str, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Task:
    """The task of a template as it is typed on a command line; no rows are reserved for shots."""
    path = lines(folder, "rows.jsonl", rows)
    given = TaskOptions(**{"hold_back": False, **settings})
    (task,) = open_task(str(path), read_templates([template]), given).values()
    return task


def file_of(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> str:
    lines(folder, "rows.jsonl", rows)
    config = {
        "data": "rows.jsonl", "template": "{text}: {output}", "target": "label", "choices": ["a", "b"], **changes
    }  # fmt: skip
    (folder / "t.yaml").write_text(json.dumps(config), encoding="utf-8")
    return str(folder / "t.yaml")


def told(task: Task, model: LanguageModel, **design: Any) -> tuple[str, ...]:
    """The warnings of an evaluation whose prompts are made."""
    with opened(None) as store:
        evaluation = EvalRun({task.name: task}, [model], Design(**design), ScoringConfig(), store)
        evaluation.questions(0)
        return evaluation.notes.warnings


@pytest.mark.parametrize("end", ["\\n", "\n"])
def test_a_template_that_ends_in_a_newline_is_told_however_it_is_typed(end: str, tmp_path: Path) -> None:
    (warning,) = table(tmp_path, FORM + end).warnings
    assert r"ends in a newline ('{text}: {label}\n'), so shots are separated by '\n\n\n'" in warning
    (warning,) = table(tmp_path, FORM + end, separator="").warnings
    assert r"so shots are separated by '\n'" in warning


def test_the_newline_that_ends_a_template_file_is_no_part_of_it_and_a_second_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "form.txt").write_text(FORM + "\n")
    assert table(tmp_path, str(tmp_path / "form.txt")).warnings == ()
    (tmp_path / "form.txt").write_text(FORM + "\n\n")
    assert "ends in a newline" in table(tmp_path, str(tmp_path / "form.txt")).warnings[0]


def test_a_newline_right_before_the_answer_is_told(tmp_path: Path) -> None:
    (warning,) = table(tmp_path, "{text}\\n{label}").warnings
    assert "so prompts end in a newline" in warning


def test_a_template_over_a_task_is_looked_at_as_well() -> None:
    (task,) = open_task("sentiment", read_templates(["{text}: {output}\\n"])).values()
    assert "ends in a newline" in task.warnings[0]


@pytest.mark.parametrize("free", [False, True])
def test_two_spaces_before_an_answer_are_told(free: bool, tmp_path: Path) -> None:
    (warning,) = table(tmp_path, "{text}:  {label}", generate=free).warnings
    assert warning.startswith("20 of 20 items have two spaces before an answer")


def test_a_delimiter_that_ends_in_a_space_and_a_choice_that_begins_with_one_are_two_spaces(tmp_path: Path) -> None:
    rows = [{**row, "label": [" a", "b"][n % 2]} for n, row in enumerate(ROWS)]
    (task,) = open_task(file_of(tmp_path, rows, choices=[" a", "b"])).values()
    assert [warning[:45] for warning in task.warnings[1:]] == ["16 of 16 items have two spaces before an answ"]
    (task,) = open_task(file_of(tmp_path, rows, choices=[" a", "b"], template="{text}:{output}")).values()
    assert task.warnings == (HELD_BACK,)


def test_two_equal_choices_are_counted_and_refused_where_all_items_have_them(tmp_path: Path) -> None:
    some = [{**row, "options": ["a", "b", "b" if n < 3 else "c"]} for n, row in enumerate(ROWS)]
    (task,) = open_task(file_of(tmp_path, some, choices="options"), options=TaskOptions(hold_back=False)).values()
    assert task.warnings == ("3 of 20 items have two choices that are the same; only one can be right",)
    with pytest.raises(UsageError, match=r"t: two choices are the same in every item \('a', 'b', 'b'\)"):
        open_task(file_of(tmp_path, choices=["a", "b", "b"]))


def test_labels_that_differ_only_in_case_or_spaces_are_told(tmp_path: Path) -> None:
    rows = [{**row, "label": ["Good", "good", "bad"][n % 3]} for n, row in enumerate(ROWS)]
    assert table(tmp_path, FORM, rows).warnings == ("20 of 20 items have choices that differ only in case or spaces",)
    shots = lines(tmp_path, "shots.jsonl", [{**ROWS[0], "label": "A"}])
    task = table(tmp_path, FORM, shots_from=shots)  # labels in another case than those of the items
    assert task.warnings == ("20 of 20 items have choices that differ only in case or spaces",)


def test_shots_of_an_item_s_own_group_are_counted(model: LanguageModel, tmp_path: Path) -> None:
    shots = lines(
        tmp_path, "shots.jsonl", [{"text": "x", "label": "a", "shop": 2}, {"text": "y", "label": "b", "shop": 9}]
    )
    task = table(tmp_path, FORM, group="shop", shots_from=shots)
    (warning,) = told(task, model, shots=(0, 2), fewshot_seeds=1)
    assert warning.startswith("4 items have a shot of their own group")
    assert "--shots-from" in warning
    assert told(task, model, shots=(0,)) == ()
    assert told(table(tmp_path, FORM, shots_from=shots), model, shots=(2,)) == ()


def test_without_shots_every_row_is_scored_and_with_them_the_same_ones_whatever_their_number(
    model: LanguageModel, tmp_path: Path
) -> None:
    path = lines(tmp_path, "rows.jsonl", ROWS)

    def result(*shots: int, seed: int = 0) -> Any:
        return evaluate(
            path, model, shots=shots, templates={"t": FORM}, design=Design(fewshot_seeds=1, baselines=False, seed=seed),
            options=TaskOptions(seed=seed),
        )  # fmt: skip

    none, one, more, other = result(0), result(1), result(0, 1, 3), result(1, seed=1)
    assert none.items == 20
    assert none.notes.warnings == ()
    assert one.scored_rows == more.scored_rows
    assert len(one.scored_rows) == 16
    assert one.notes.warnings == more.notes.warnings == (HELD_BACK,)
    assert other.scored_rows != one.scored_rows


def test_rows_that_are_shots_of_a_task_that_has_no_others_are_told(model: LanguageModel, tmp_path: Path) -> None:
    task = table(tmp_path, FORM)
    task = replace(task, fewshot_pool=task.items)
    (warning,) = told(task, model, shots=(0, 3), fewshot_seeds=1)
    assert warning == "3 of 20 rows are shots for some seed and are not scored; use --shots-from to score all"
    assert told(task, model, shots=(0,)) == ()


@pytest.mark.parametrize("written", [False, True])
def test_items_that_ask_the_same_are_told_unless_a_group_holds_them(
    written: bool, model: LanguageModel, tmp_path: Path
) -> None:
    rows = [{**row, "text": f"text {n // 2}"} for n, row in enumerate(ROWS[:16])]
    (warning,) = told(table(tmp_path, FORM, rows, generate=written), model, baselines=False)
    assert warning.startswith("16 of 16 items are copies of another, but count as independent")
    assert told(table(tmp_path, FORM, rows, generate=written, group="shop"), model, baselines=False) == ()
