"""Task files: what their keys mean, what is refused, and templates in Jinja, which run in a process of their own."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from table_tasks import table_task

from nextword.base import UsageError
from nextword.evals.task import Task, requests
from nextword.evals.task_files import TaskFile
from nextword.evals.task_loader import TaskOptions, open_task
from nextword.evals.template import Jinja, Template
from nextword.text.jinja import _worker

ROWS = [{"q": f"question {n}", "options": [f"a{n}", f"b{n}"], "right": n % 2, "kind": n // 3} for n in range(12)]
PLAIN = {"data": "rows.jsonl", "template": "{q}\nA. {options[0]}\nB. {options[1]}\nAnswer: {output}", "target": "right"}
DOCS = Path(__file__).parents[2] / "docs/eval.md"


def written(folder: Path, rows: list[dict[str, Any]] = ROWS, **keys: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "t.yaml").write_text(yaml.safe_dump({**PLAIN, **keys}, sort_keys=False), encoding="utf-8")
    return str(folder / "t.yaml")


def loaded(folder: Path, rows: list[dict[str, Any]] = ROWS, **keys: Any) -> Task:
    return open_task(written(folder, rows, **keys))["t"]


def test_a_target_may_be_the_number_of_a_choice_or_its_text(tmp_path: Path) -> None:
    numbered = loaded(tmp_path, choices=["A", "B"])
    assert [numbered.format.gold(row) for row in ROWS[:3]] == [0, 1, 0]
    assert numbered.format.example(ROWS[1]) == "question 1\nA. a1\nB. b1\nAnswer: B\n\n"
    texts = [{**row, "right": "BA"[n % 2]} for n, row in enumerate(ROWS)]
    assert [loaded(tmp_path, texts, choices=["A", "B"]).format.gold(row) for row in texts[:3]] == [1, 0, 1]
    digits = [{**row, "right": 1 + n % 2} for n, row in enumerate(ROWS)]  # texts that look like numbers are texts
    assert [loaded(tmp_path, digits, choices=[1, 2]).format.gold(row) for row in digits[:3]] == [0, 1, 0]


def test_choices_may_be_those_of_each_row(tmp_path: Path) -> None:
    task = loaded(tmp_path, choices="options")
    for item in task.items:
        asked = requests(task, [], item)
        assert [one.continuation for one in asked] == [f" {option}" for option in item.values["options"]]
        assert task.format.gold(item.values) == item.values["right"]
        other = task.format.with_answer(item.values, 1 - item.values["right"])
        assert task.format.gold(other) == 1 - item.values["right"]
    with pytest.raises(UsageError, match="row 1: 'q' is not a list of choices: 'question 0'"):
        open_task(written(tmp_path, choices="q"))


def test_answers_are_generated_and_scored_as_the_file_says(tmp_path: Path) -> None:
    rows = [{**row, "right": [f"yes {n}", "YES"]} for n, row in enumerate(ROWS)]
    generate = {"until": ["\n", "."], "max_tokens": 5, "temperature": 0.5}
    task = loaded(tmp_path, rows, generate=generate, scorers={"whole": "exact", "part": "contains"}, shots=2)
    assert (task.output, task.shots) == ("generate_until", 2)
    assert (task.generation.until, task.generation.max_tokens, task.generation.temperature) == (("\n", "."), 5, 0.5)
    assert task.format.gold(rows[3]) == ["yes 3", "YES"]
    assert task.format.example(rows[3]).endswith("Answer: yes 3\n\n")
    assert [scorer.function("yes", ["yes 3", "YES"], {}) for scorer in task.scorers] == [1.0, 1.0]
    assert [scorer.name for scorer in task.scorers] == ["whole", "part"]


def test_a_file_with_shots_and_no_rows_for_them_reserves_some(tmp_path: Path) -> None:
    for shots, reserved in ((0, 0), (2, 2)):
        path = written(tmp_path, choices=["A", "B"], shots=shots)
        task = open_task(path, options=TaskOptions(hold_back=None))["t"]
        assert len(task.fewshot_pool) == reserved
        assert len(task.items) == 12 - reserved


def test_description_separator_and_group_are_the_file_s(tmp_path: Path) -> None:
    task = loaded(tmp_path, choices=["A", "B"], description="Choose.\n", separator="\n--\n", group="kind")
    asked = requests(task, task.fewshot_pool[:1], task.items[0])[0].context
    assert asked.startswith("Choose.\nquestion")
    assert asked.count("\n--\n") == 1
    assert {item.group for item in task.items} <= {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tempalte": "x"}, "unknown setting 'tempalte'. Did you mean template"),
        ({"output_type": "generate_until"}, "this is a task of lm-evaluation-harness. Use --lm-eval"),
        ({"shots": "2"}, "shots '2': give a whole number of at least 0"),
        ({"shots": True}, "shots True: give a whole number of at least 0"),
        ({"shots": -1}, "shots -1: give a whole number of at least 0"),
        ({"choices": [["A"]]}, "choices (['A'],): give"),
        (
            {"generate": {"max_token": 3}},
            "unknown setting 'generate.max_token'. Did you mean generate.max_tokens",
        ),
        ({"generate": {"max_tokens": 0}}, "generate.max_tokens 0: give a whole number of at least 1"),
        ({"generate": True, "scorers": "exactly"}, "scorer 'exactly' is not known. Did you mean exact"),
        ({"generate": True, "scorers": {"a": 3}}, "scorers {'a': 3}: give"),
        ({"template_file": "x.txt"}, "it needs either template or template_file"),
        ({"target": "wrong"}, "there is no column 'wrong'"),
        ({"data": "none.jsonl"}, "none.jsonl: cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        open_task(written(tmp_path, **{"choices": ["A", "B"], **keys}))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "not YAML"),
        ("- a", "a task file is a mapping of keys"),
        ("data: rows.jsonl\nx: !!python/object:os.system {}\n", "not YAML"),
        ("a: &a {b: 1}\nc: {<<: *a}\n", "not YAML"),
        ("template: x\n", "data is missing"),
        ("data: rows.jsonl\ntemplate: '{q} {output}'\n", "target is missing"),
        ("data: &a [*a]\ntarget: x\ntemplate: y\n", "data .*: give text"),
    ],
)
def test_hostile_files_are_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        open_task(str(tmp_path / "t.yaml"))
    assert "\n" not in str(refused.value)


def test_the_documentation_lists_every_key() -> None:
    listed = DOCS.read_text(encoding="utf-8").split("## Task files")[1].split("\n## ")[0]
    assert [key.name for key in fields(TaskFile) if f"`{key.name}`" not in listed] == []


JINJA = """{{ q | upper }}
{% for option in options %}{{ loop.index }}. {{ option }}
{% endfor %}Answer: {{ output }}."""


def test_a_jinja_template_gives_questions_shots_and_chats(tmp_path: Path) -> None:
    (tmp_path / "form.jinja").write_text(JINJA)
    keys = {key: value for key, value in PLAIN.items() if key != "template"} | {"template_file": "form.jinja"}
    written(tmp_path)
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**keys, "choices": ["A", "B"]}))
    task = open_task(str(tmp_path / "t.yaml"))["t"]
    question = "QUESTION 3\n1. a3\n2. b3\nAnswer:"
    assert task.format.questions(ROWS[3]) == [(question, " A"), (question, " B")]
    assert task.format.example(ROWS[3]) == f"{question} B.\n\n"
    assert task.format.turn(ROWS[3]) == (question, "B.")
    assert task.format.template.last_words == "Answer:"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ txt }} {{ label }}", "the template fails: 'txt' is undefined"),
        ("{% for x in text %}{{ label }}", "the template fails"),
        ("{{ text }}", "exactly one {{ output }} or {{ label }}"),
        ("{{ text.__class__.__mro__ }} {{ label }}", "the template fails"),
        ("{{ cycler.__init__.__globals__ }} {{ label }}", "the template fails"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %} {{ label }}", "the template"),
        ("{{ 9 ** (9 ** (9 ** 9)) }} {{ label }}", "the template was stopped"),
        ("{{ 'x' * 10 ** 10 }} {{ label }}", "the template"),
    ],
)
def test_a_bad_or_hostile_jinja_template_is_one_line(
    source: str, said: str, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextword.text.jinja.TIME_LIMIT", 0.5)
    with pytest.raises(UsageError) as refused:
        table_task(reviews, Jinja(source))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_row_is_rendered_once_however_often_it_is_a_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[bytes] = []
    render = _worker.render
    monkeypatch.setattr(_worker, "render", lambda request, what: rendered.append(request) or render(request, what))
    template = Template.parse(Jinja("{{ text }} is {{ output }}"))
    assert {template.example({"text": "once only", "output": "so"}) for _ in range(5)} == {"once only is so"}
    assert len(rendered) == 1


def test_braces_of_a_row_stay_text_in_jinja_too() -> None:
    template = Template.parse(Jinja("{{ text }}: {{ output }}"))
    assert template.question({"text": "{{ 7 * 7 }} {x}", "output": "{{ text }}"}) == "{{ 7 * 7 }} {x}:"
    assert template.answer({"text": "x", "output": "{{ text }}"}) == "{{ text }}"
