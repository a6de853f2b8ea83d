"""A table and a template become a task; what does not fit is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_tasks import table_task

from nextword.base import UsageError
from nextword.evals.fewshot import repeated_items
from nextword.evals.task import Item, Task, requests
from nextword.evals.task_loader import _reserved, labels_of

FORM = "Text: {text}\nMood: {label}"
ROWS = [{"text": f"text {n}", "label": n % 2, "shop": n // 4} for n in range(20)]


def file_of(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_prompt_is_the_template_filled_for_shots_and_up_to_the_answer_for_the_question(tmp_path: Path) -> None:
    given = {"labels": ("0=negative", "1=positive"), "description": "Classify.\n\n", "separator": "\n--\n"}
    task = table_task(file_of(tmp_path, ROWS), FORM, **given)
    rows = [Item("shots", n, ROWS[n]) for n in (0, 1)]
    asked = requests(task, rows, Item("test", 7, ROWS[7]))
    assert [each.context for each in asked] == [
        "Classify.\n\nText: text 0\nMood: negative\n--\nText: text 1\nMood: positive\n--\nText: text 7\nMood:"
    ] * 2
    assert [each.continuation for each in asked] == [" negative", " positive"]
    assert [task.format.gold(row.values) for row in rows] == [0, 1]
    assert task.format.choices(ROWS[0]) == ("negative", "positive")


def test_labels_are_those_of_the_data_sorted_unless_said(tmp_path: Path) -> None:
    path = file_of(tmp_path, ROWS)
    assert table_task(path, FORM).format.choices(ROWS[0]) == ("0", "1")
    said = table_task(path, FORM, labels=("1=yes", "0"))
    assert said.format.choices(ROWS[0]) == ("yes", "0")
    assert [said.format.gold(row) for row in ROWS[:2]] == [1, 0]


def test_another_label_changes_the_row_s_answer_only(tmp_path: Path) -> None:
    task = table_task(file_of(tmp_path, ROWS), FORM, labels=("0=no", "1=yes"))
    for row in ROWS[:2]:
        for choice in (0, 1):
            changed = task.format.with_answer(row, choice)
            assert task.format.gold(changed) == choice
            assert task.format.example(changed) == f"Text: {row['text']}\nMood: {('no', 'yes')[choice]}\n\n"
            assert {**changed, "label": row["label"]} == row


def test_many_answers_or_a_wish_make_the_model_write_freely(tmp_path: Path) -> None:
    sums = [{"text": f"{n}+1", "label": str(n + 1)} for n in range(40)]
    free = table_task(file_of(tmp_path, sums), FORM)
    assert free.output == "generate_until"
    assert free.format.gold(sums[3]) == "4"
    assert requests(free, [], Item("test", 3, sums[3]))[0].continuation == ""
    assert table_task(file_of(tmp_path, ROWS), FORM, generate=True).output == "generate_until"


def test_shots_come_from_rows_that_are_not_scored(tmp_path: Path) -> None:
    task = table_task(file_of(tmp_path, ROWS), FORM)
    scored, pool = ({item.index for item in part} for part in (task.items, task.fewshot_pool))
    assert scored | pool == set(range(20))
    assert not scored & pool
    assert len(pool) == 4


@given(st.integers(0, 3000), st.integers(0, 50))
def test_a_fifth_is_reserved_for_shots_200_at_most_and_by_seed(count: int, seed: int) -> None:
    items = [Item("test", n, {}) for n in range(count)]
    reserved = _reserved(items, seed)
    assert len(reserved) == min(200, count // 5)
    assert reserved <= {item.row_id for item in items}
    assert reserved == _reserved(items, seed)


def test_another_seed_reserves_other_rows() -> None:
    items = [Item("test", n, {}) for n in range(100)]
    assert _reserved(items, 0) != _reserved(items, 1)


def test_a_file_of_shots_leaves_every_row_to_be_scored_and_repeats_are_found(tmp_path: Path) -> None:
    others = [{"text": "another", "label": 0}, {"text": "Text  3 ", "label": 0}, {"text": "more", "label": 1}]
    path, shots = file_of(tmp_path, ROWS), file_of(tmp_path, others, "shots.jsonl")
    task: Task = table_task(path, FORM, shots_from=shots, group="shop")
    assert [item.index for item in task.items] == list(range(20))
    assert [item.group for item in task.items] == [str(n // 4) for n in range(20)]
    assert [shot.values for shot in task.fewshot_pool] == others
    assert repeated_items(task) == 1


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    path = file_of(tmp_path, ROWS)
    path.write_text(path.read_text(encoding="utf-8") + "\nno row\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 21"):
        table_task(path, FORM)
    task = table_task(path, FORM, skip_invalid=True)
    assert len(task.notes) == 1
    assert "line 21: not JSON" in task.notes[0]
    assert len(task.items) + len(task.fewshot_pool) == 20


GAP = "where the answer goes"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a column that is not there": (
        "{txet} {label}",
        {},
        "no column 'txet', which the template uses. Did you mean text? Columns: text",
    ),
    "an answer that is not there": ("{text} {mood}", {"target": "mood"}, "no column 'mood'. Columns: text"),
    "a group that is not there": (
        FORM,
        {"group": "shops"},
        "no column 'shops' to group by. Did you mean",
    ),
    "no place for the answer": ("Text: {text}", {}, GAP),
    "two places for the answer": ("{label} {text} {output}{output}", {}, GAP),
    "a lone brace": ("{text} { {label}", {}, "lone '{' at character 8"),
    "a label without a name": (
        FORM,
        {"labels": ("0=no",)},
        "row 2: the answer 1 is none of the choices that --labels names: 'no' (10 of 20 rows are affected)",
    ),
    "a name without a label": (
        FORM,
        {"labels": ("0", "1", "2=maybe")},
        "--labels: '2' does not occur in column 'label' of",
    ),
    "one name for two labels": (FORM, {"labels": ("0=no", "1=no")}, "the same word for two labels"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    template, options, said = REFUSED[what]
    with pytest.raises(UsageError) as refused:
        table_task(file_of(tmp_path, ROWS), template, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_columns_that_are_not_there_are_told_in_the_template_s_order(tmp_path: Path) -> None:
    names = [f"gap{n}" for n in range(6)]
    form = " ".join(f"{{{name}}}" for name in names) + " {label}"
    with pytest.raises(UsageError, match=r"no column 'gap0'"):
        table_task(file_of(tmp_path, ROWS), form)


@pytest.mark.parametrize("name", ["rows.jsonl", "../rows/rows.jsonl", "link.jsonl"])
def test_the_scored_file_is_no_file_of_shots_by_whatever_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    path = file_of(folder, ROWS)
    (folder / "link.jsonl").symlink_to(path)
    with pytest.raises(UsageError, match="would be among their own shots"):
        table_task(path, FORM, shots_from=folder / name)


@pytest.mark.parametrize("label", [None, "", "  "])
def test_a_row_without_an_answer_is_named_and_does_not_become_a_label(label: str | None, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(10)]
    rows[6] = {"text": "text 6", "label": label}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match=r"row 7: (there is no|the answer in) 'label'"):
        table_task(file_of(tmp_path, rows), FORM)


def test_a_question_may_be_empty(tmp_path: Path) -> None:
    rows = [{"text": "", "label": "ab"[n % 2]} for n in range(10)]
    task = table_task(file_of(tmp_path, rows), FORM)
    assert requests(task, [], task.items[0])[0].context == "Text: \nMood:"


def test_one_answer_for_all_rows_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "a"} for n in range(10)]
    with pytest.raises(UsageError, match="nothing to choose between"):
        table_task(file_of(tmp_path, rows), FORM)


def test_an_answer_s_column_without_a_usual_name_is_asked_for(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "mood": "ab"[n % 2]} for n in range(10)]
    path = file_of(tmp_path, rows)
    with pytest.raises(UsageError, match=r"--target\. Columns: text, mood"):
        table_task(path, "{text}: {output}")
    for form in ("{text}: {output}", "{text}: {mood}"):
        task = table_task(path, form, target="mood")
        assert [task.format.gold(row) for row in rows[:2]] == [0, 1]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no rows"):
        table_task(file_of(tmp_path, []), FORM)


def test_shots_without_a_column_or_with_a_new_label_are_told_by_their_file(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "output": "ab"[n % 2]} for n in range(10)]
    path, form = file_of(tmp_path, rows), "{text}: {output}"
    bare = file_of(tmp_path, [{"text": "x", "answer": "a"}], "bare.jsonl")
    with pytest.raises(
        UsageError,
        match=r"bare\.jsonl: there is no column 'output', which the template uses.*Columns: text, answer",
    ):
        table_task(path, form, shots_from=bare)
    new = file_of(tmp_path, [{"text": "x", "output": "c"}], "new.jsonl")
    with pytest.raises(UsageError, match=r"new\.jsonl, row 1: the answer 'c' is none of .*: 'a', 'b'"):
        table_task(path, form, labels=("a", "b"), shots_from=new)


def test_a_label_that_holds_a_comma_is_quoted_and_the_message_shows_how(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": ("bad, awful", 'so "good"')[n % 2]} for n in range(10)]
    with pytest.raises(UsageError, match=r'To rename one, write "bad, awful"=word'):
        table_task(file_of(tmp_path, rows), FORM, labels=labels_of("bad, awful=bad"))
    labels = labels_of('"bad, awful"=bad, "so ""good"""=good')
    task = table_task(file_of(tmp_path, rows), FORM, labels=labels)
    assert list(task.format.choices(task.items[0].values)) == ["bad", "good"]


def test_labels_on_two_lines_are_refused() -> None:
    with pytest.raises(UsageError, match="--labels cannot be read"):
        labels_of("a\nb,c")


def test_a_column_may_be_called_by_any_letters(tmp_path: Path) -> None:
    rows = [{"texte": f"t {n}", "étiquette": "ab"[n % 2]} for n in range(10)]
    task = table_task(file_of(tmp_path, rows), "{texte} {étiquette}", target="étiquette")
    assert requests(task, [], task.items[0])[0].context.startswith("t ")
