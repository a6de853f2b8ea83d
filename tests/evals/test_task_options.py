"""What a user says of a task changes it, whatever kind it is, or is refused by the option's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.evals.task import Task, requests
from nextword.evals.task_loader import TaskOptions, open_task

ROWS = [
    {"q": f"question {n}", "a": n % 2, "answer": ["no", "yes"][n % 2], "topic": n // 4, "own": ["no", "yes", str(n)]}
    for n in range(20)
]
POOL = [
    {"q": f"shot {n}", "a": n % 2, "answer": ["no", "yes"][n % 2], "topic": 9, "own": ["no", "yes"]} for n in range(6)
]
CHOICE = {
    "data": "rows.jsonl", "fewshot_data": "pool.jsonl", "template": "Q {q}\nA: {output}", "target": "a",
    "choices": ["no", "yes"], "description": "About it. ",
}  # fmt: skip
OTHER_SHOTS: dict[str, dict[str, Any]] = {  # a row of shots for each kind of task
    "table": {"q": "other", "a": 1, "answer": "yes", "topic": 8},
    "file": {"q": "other", "a": 1, "answer": "yes", "topic": 8},
    "builtin": {"text": "other", "label": "positive", "source": "amazon"},
    "template": {"text": "other", "label": "positive", "source": "amazon"},
}
GIVEN: dict[str, dict[str, Any]] = {
    "--description": {"description": "q"},  # a column's name, and no column is meant
    "--separator": {"separator": "\n##\n"},
    "--generate": {"generate": True},
}


def lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def file_of(folder: Path, rows: list[dict[str, Any]] = ROWS, pool: list[dict[str, Any]] = POOL, **changes: Any) -> str:
    """A task file with its data."""
    lines(folder, "rows.jsonl", rows)
    lines(folder, "pool.jsonl", pool)
    config = {key: value for key, value in {**CHOICE, **changes}.items() if value is not None}
    (folder / "t.yaml").write_text(json.dumps(config), encoding="utf-8")
    return str(folder / "t.yaml")


def opened(kind: str, folder: Path, **settings: Any) -> Task:
    """The only form of a task of this kind."""
    if kind == "table":
        template = {"t": "Q {q}\nA: {output}"}
        name = str(lines(folder, "rows.jsonl", ROWS))
        settings = {"target": "a", **settings}
    else:
        name = file_of(folder) if kind == "file" else "sentiment"
        template = {"t": "{text}: {output}"} if kind == "template" else {}
    (task,) = open_task(name, template, TaskOptions(**settings)).values()
    return task


def seen(task: Task) -> tuple[Any, ...]:
    """All that can make a difference: what is asked, the choices, what is right, groups and shots."""
    item = task.items[0]
    return (
        [(each.context, each.continuation) for each in requests(task, task.fewshot_pool[:2], item)],
        task.format.choices(item.values), task.format.gold(item.values), task.output,
        [each.group for each in task.items], [each.digest for each in task.fewshot_pool],
        [each.row_id for each in task.items],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
@pytest.mark.parametrize("option", [*GIVEN, "--labels", "--group", "--shots-from"])
def test_every_option_changes_a_task_of_every_kind_or_is_refused_by_name(
    option: str, kind: str, tmp_path: Path
) -> None:
    shots = lines(tmp_path, "other.jsonl", [OTHER_SHOTS[kind]])
    labels = {"table": ("0=bad", "1=good"), "file": ("no=bad", "yes=good")}.get(kind, ("negative=bad", "positive=good"))
    column = "topic" if kind in ("table", "file") else "source"
    given = {
        **GIVEN,
        "--labels": {"labels": labels},
        "--group": {"group": column},
        "--shots-from": {"shots_from": shots},
    }
    plain = seen(opened(kind, tmp_path))
    assert seen(opened(kind, tmp_path, **given[option])) != plain


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_another_column_can_have_the_answer(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'nope'.*Columns:"):
        opened(kind, tmp_path, target="nope")
    if kind == "table":
        assert opened(kind, tmp_path, target="answer").format.choices({}) == ("no", "yes")


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_a_description_is_literal_and_stands_before_everything(kind: str, tmp_path: Path) -> None:
    task = opened(kind, tmp_path, description="{{q}} text. ")
    plain = opened(kind, tmp_path)
    own = plain.format.description
    asked, before = (requests(each, each.fewshot_pool[:1], each.items[0])[0].context for each in (task, plain))
    assert asked == "{{q}} text. " + before.removeprefix(own)
    assert requests(opened(kind, tmp_path, description=""), [], task.items[0])[0].context == (
        requests(plain, [], task.items[0])[0].context.removeprefix(own)
    )


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_a_separator_stands_between_shots(kind: str, tmp_path: Path) -> None:
    asked = [
        requests(each, each.fewshot_pool[:2], each.items[0])[0].context
        for each in (opened(kind, tmp_path, separator="\n##\n"), opened(kind, tmp_path))
    ]
    assert asked[0].count("\n##\n") == 2
    assert asked[0].replace("\n##\n", "\n\n") == asked[1]


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_words_for_choices_stand_in_questions_and_shots_and_the_right_one_stays(kind: str, tmp_path: Path) -> None:
    names = {"table": "01", "file": ("no", "yes")}.get(kind, ("negative", "positive"))
    task, plain = opened(kind, tmp_path, labels=(f"{names[0]}=bad", f"{names[1]}=good")), opened(kind, tmp_path)
    assert list(task.format.choices(task.items[0].values)) == ["bad", "good"]
    for shot in (*task.fewshot_pool[:4], *task.items[:4]):
        gold = task.format.gold(shot.values)
        assert gold == plain.format.gold(shot.values)
        assert task.format.example(shot.values).endswith(f" {['bad', 'good'][int(gold)]}\n\n")  # type: ignore[arg-type]
        changed = task.format.with_answer(shot.values, 1 - int(gold))  # type: ignore[arg-type]
        assert task.format.example(changed).endswith(f" {['good', 'bad'][int(gold)]}\n\n")  # type: ignore[arg-type]
    assert [each.continuation for each in requests(task, [], task.items[0])] == [" bad", " good"]


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_free_asks_for_the_right_choices_text(kind: str, tmp_path: Path) -> None:
    task, plain = opened(kind, tmp_path, generate=True), opened(kind, tmp_path)
    for item in task.items[:4]:
        choice = plain.format.choices(item.values)[int(plain.format.gold(item.values))]  # type: ignore[arg-type]
        assert task.format.gold(item.values) == choice
    asked = [requests(each, each.fewshot_pool[:2], each.items[0]) for each in (task, plain)]
    assert [(each.context, each.continuation) for each in asked[0]] == [(asked[1][0].context, "")]
    assert (task.output, task.generation.until, task.scorers[0].name) == ("generate_until", ("\n",), "exact")


def test_spaces_around_a_choice_do_not_count_when_the_model_writes_it(tmp_path: Path) -> None:
    path = file_of(tmp_path, choices=[" no", " yes"], template="Q {q}\nA:{output}")
    (task,) = open_task(path, {}, TaskOptions(generate=True)).values()
    assert [task.format.gold(item.values) for item in task.items[:2]] == ["no", "yes"]
    rows = [{"text": f"{n}", "label": f"{n} "} for n in range(6)]
    (table,) = open_task(
        str(lines(tmp_path, "r.jsonl", rows)), {"t": "{text}:{label}"}, TaskOptions(generate=True)
    ).values()
    assert table.format.gold(rows[3]) == "3"


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_groups_are_of_items_and_shots(kind: str, tmp_path: Path) -> None:
    column = "topic" if kind in ("table", "file") else "source"
    task = opened(kind, tmp_path, group=column)
    assert all(item.group == str(item.values[column]) for item in (*task.items, *task.fewshot_pool))
    with pytest.raises(UsageError, match=rf"no column '{column}s' to group by\. Did you mean {column}"):
        opened(kind, tmp_path, group=f"{column}s")


@pytest.mark.parametrize("kind", ["table", "builtin", "file", "template"])
def test_shots_from_a_file_are_the_pool_and_all_rows_are_scored(kind: str, tmp_path: Path) -> None:
    shots = lines(tmp_path, "other.jsonl", [OTHER_SHOTS[kind]])
    column = "topic" if kind in ("table", "file") else "source"
    task = opened(kind, tmp_path, shots_from=shots, group=column)
    assert [dict(shot.values) for shot in task.fewshot_pool] == [OTHER_SHOTS[kind]]
    assert [shot.group for shot in task.fewshot_pool] == [str(OTHER_SHOTS[kind][column])]
    assert len(task.items) == (20 if kind in ("table", "file") else 2669)
    bare = lines(tmp_path, "bare.jsonl", [{"other": 1}])
    with pytest.raises(UsageError, match=r"bare\.jsonl.*Columns: other"):
        opened(kind, tmp_path, shots_from=bare)


def test_a_csv_file_of_shots_has_the_types_that_the_task_s_own_file_would_have(tmp_path: Path) -> None:
    (tmp_path / "shots.csv").write_text("q,a,topic\nother,1,3\n")
    (task,) = open_task(file_of(tmp_path), {}, TaskOptions(shots_from=tmp_path / "shots.csv")).values()
    assert task.format.example(task.fewshot_pool[0].values) == "Q other\nA: yes\n\n"
    assert task.format.gold(task.fewshot_pool[0].values) == 1


def test_the_scored_file_of_a_task_is_no_file_of_shots(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would be among their own shots"):
        open_task(file_of(tmp_path), {}, TaskOptions(shots_from=tmp_path / "." / "rows.jsonl"))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"choices": "own"}, {"labels": ("no", "yes")}, "differ from item to item, and --labels"),
    ({}, {"labels": ("no=bad",)}, "--labels does not name 'yes', a choice of t"),
    ({}, {"labels": ("no", "yess=good")}, "--labels: 'yess' does not occur in the choices of t"),
    ({}, {"labels": ("no=x", "yes=x")}, "the same word for two labels"),
    ({"generate": True}, {"labels": ("no", "yes=x")}, "--labels: in t the model writes its answer"),
    ({}, {"max_tokens": 3}, "--max-tokens: the model writes no answer here. Add --generate"),
    ({}, {"shots_from": Path("x")}, "x: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "given", "said"), REFUSED)
def test_what_has_no_meaning_for_a_task_is_refused_by_name(
    changes: dict[str, Any], given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        open_task(file_of(tmp_path, **changes), {}, TaskOptions(**given))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_words_for_choices_and_a_free_answer_exclude_each_other_everywhere() -> None:
    with pytest.raises(UsageError, match="--labels names choices, and --generate has none"):
        TaskOptions(labels=("a", "b"), generate=True)


def test_a_template_over_a_task_keeps_all_right_answers() -> None:
    (plain,) = open_task("antonyms", {}).values()
    (task,) = open_task("antonyms", {"t": "The opposite of {word} is {output}"}).values()
    assert [task.format.gold(item.values) for item in task.items] == [
        plain.format.gold(item.values) for item in plain.items
    ]
    several = next(item for item in task.items if len(item.values["answers"]) > 1)
    assert task.format.example(several.values).endswith(f" is {several.values['answers'][0]}\n\n")


BAD = [*ROWS[:6], {**ROWS[6], "a": 2}, *ROWS[7:]]


def test_an_answer_that_is_none_of_the_choices_is_refused_with_its_row_and_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        open_task(file_of(tmp_path, BAD), {})
    assert "rows.jsonl, row 7: the answer 2 is none of the choices: 'no', 'yes'" in str(refused.value)
    assert "--skip-invalid" in str(refused.value)
    with pytest.raises(UsageError, match=r"pool\.jsonl, row 1: the answer 2 .* \(2 of 6 rows are affected\)"):
        open_task(file_of(tmp_path, pool=[{**POOL[0], "a": 2}, {**POOL[1], "a": 2}, *POOL[2:]]), {})
    with pytest.raises(UsageError, match="row 7: there is no 'a'"):
        open_task(file_of(tmp_path, [*ROWS[:6], {**ROWS[6], "a": None}, *ROWS[7:]]), {})


def test_rows_whose_answer_is_none_of_the_choices_are_left_out_when_asked_and_counted(tmp_path: Path) -> None:
    path = file_of(tmp_path, BAD, [*POOL, {**POOL[0], "a": "maybe"}])
    (task,) = open_task(path, {}, TaskOptions(skip_invalid=True)).values()
    assert [item.index for item in task.items] == [*range(6), *range(7, 20)]
    assert len(task.fewshot_pool) == 6
    assert [note.partition(": ")[2] for note in task.notes] == [
        "1 of 20 rows are skipped. The first is row 7: the answer 2 is none of the choices: 'no', 'yes'",
        "1 of 7 rows are skipped. The first is row 7: the answer 'maybe' is none of the choices: 'no', 'yes'",
    ]
    with pytest.raises(UsageError, match=r"row 1: .*'q.*0'.* \(20 of 20 rows are affected\)\. No row would be left"):
        open_task(file_of(tmp_path, target="q"), {}, TaskOptions(skip_invalid=True))


def test_broken_lines_of_a_task_file_s_data_are_left_out_when_asked(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UsageError, match="line 21: not JSON"):
        open_task(path, {})
    (task,) = open_task(path, {}, TaskOptions(skip_invalid=True)).values()
    assert len(task.items) == 20
    assert ["line 21: not JSON" in note for note in task.notes] == [True]


@pytest.mark.parametrize("kind", ["table", "file"])
def test_what_one_of_several_templates_cannot_ask_none_of_them_does(kind: str, tmp_path: Path) -> None:
    rows = [{**row, "topic": None if n % 5 == 3 else row["topic"]} for n, row in enumerate(ROWS)]
    name = file_of(tmp_path, rows, description="") if kind == "file" else str(lines(tmp_path, "r.jsonl", rows))
    templates = {"plain": "{q}: {output}", "wide": "{q} on {topic}: {output}"}
    answer = {"target": "a"} if kind == "table" else {}
    with pytest.raises(UsageError, match=r"row 4: there is no 'topic', which the template uses \("):
        open_task(name, templates, TaskOptions(**answer, hold_back=False))  # type: ignore[arg-type]
    plain, wide = open_task(name, templates, TaskOptions(**answer, skip_invalid=True)).values()  # type: ignore[arg-type]
    for one, other in ((plain.items, wide.items), (plain.fewshot_pool, wide.fewshot_pool)):
        assert [item.row_id for item in one] == [item.row_id for item in other]
    scored = {item.row_id for item in plain.items}
    assert scored.isdisjoint(item.row_id for item in plain.fewshot_pool)
    assert all(item.index % 5 != 3 for item in plain.items)
    assert len(plain.items) + len(plain.fewshot_pool) == (16 if kind == "table" else 16 + 6)
