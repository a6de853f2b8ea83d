"""The harness's own task files, letter by letter, with what they include: asked as lm-evaluation-harness asks.

tests/oracles/harness/make_files.py wrote the requests; the rows have gaps, doubles, quotation marks and other scripts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from nextword.base import UsageError
from nextword.evals.harness import draws, load_harness_task
from nextword.evals.jinja import fill
from nextword.evals.task import Task, requests

FILES = Path(__file__).parents[1] / "oracles" / "harness" / "files"
ASKED: dict[str, dict[str, list[Any]]] = json.loads((FILES / "requests.json").read_text(encoding="utf-8"))


def asked(task: Task, count: int) -> list[list[Any]]:
    """Number of the row, context and continuation of every request, as the harness lists them."""
    found: list[list[Any]] = []
    for item, shots in zip(task.items, draws(task, count), strict=True):
        pairs = [[one.context, one.continuation] for one in requests(task, shots, item)]
        if any(metric.name == "acc_mutual_info" for metric in task.metrics):
            pairs += [["", continuation] for _, continuation in pairs]  # the choices after nothing
        used = {"generate_until": slice(0, 1), "loglikelihood_rolling": slice(1, 2)}.get(task.output, slice(0, 2))
        found += [[item.index, *pair[used]] for pair in pairs]
    return found


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("count", [0, 2])
def test_a_task_file_asks_what_the_harness_asks_of_it(name: str, count: int) -> None:
    task = load_harness_task(FILES / name / "task.yaml")
    expected = ASKED[name][str(count)]
    if task.output == "generate_until":
        options = [each.pop() for each in [list(one) for one in expected]]
        assert list(task.generation.until) == options[0]["until"]
        assert task.generation.temperature == options[0].get("temperature", 0.0)
        assert task.generation.max_tokens == options[0].get("max_gen_toks", 256)
        expected = [each[:2] for each in expected]
    assert asked(task, count) == expected


def test_the_files_cover_every_output_and_what_is_easily_got_wrong() -> None:
    texts = {path.parent.name: path.read_text(encoding="utf-8") for path in FILES.glob("*/task.yaml")}
    assert set(texts) == set(ASKED)
    assert len([name for name in texts if not name.startswith("made_")]) >= 15
    everything = "\n".join(path.read_text(encoding="utf-8") for path in FILES.glob("*/*") if "yaml" in path.name)
    for key in ("include:", "samples:", "first_n", "gen_prefix:", "description:", "csv", "repeats:", "acc_mutual_info"):
        assert key in everything


def test_a_self_consistency_task_is_read_whole() -> None:
    task = load_harness_task(FILES / "gsm8k_cot_self_consistency" / "task.yaml")
    assert (task.generation.repeats, task.generation.temperature, task.shots) == (64, 0.2, 8)
    assert [chain.name for chain in task.filters] == ["score-first", "maj@64", "maj@8"]
    assert [name for name, _ in task.filters[2].steps] == ["take_first_k", "regex", "majority_vote", "take_first"]
    assert len(task.pool) == 8


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1, 2]|join(', ') }} {{ [{'x': 1}, {'x': 2}]|join(';', attribute='x') }}",
        "{{ 'a-b-c'.replace('-', '+') }} {{ 'a-b-c'|replace('-', '+', 1) }}",
        "{{ 'a' ~ 1 ~ none ~ true }} {{ 'a' + 'b' }} {{ 3 + 4 }} {{ 2.5 * 2 }}",
        "{{ [q, 1] }} {{ (q, 1) }} {{ {'k': q} }} {% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
        "{{ '-'.join(q.split(' ')[:2]) }} {{ q.split(' ')|list|length }} {{ ['A', 'B'].index('B') }}",
        "{% set n = 2 %}{% for i in range(1, 4, n) %}{{ loop.index0 }}{{ i }} {% endfor %}\n",
    ],
)
def test_what_templates_commonly_do_is_as_jinja_itself_does_it(source: str) -> None:
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(source)
    assert fill(source, {"q": "a b c"}) == plain.render(q="a b c")


ROWS = '{"q": "one", "a": 0}\n{"q": "two", "a": 1}\n{"q": "two", "a": 1}\n'
PLAIN = """
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "Q {{q}}"
doc_to_target: a
doc_to_choice: ["no", "yes"]
"""


def written(folder: Path, more: str) -> Path:
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "task.yaml").write_text("include: plain.yaml\n" + more)
    (folder / "plain.yaml").write_text(PLAIN)
    return folder / "task.yaml"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("metric_list: [acc]", "with the key 'metric'"),
        ("filter_list: [{name: x}]", "with the key 'filter'"),
        ("filter_list: [{name: x, filter: [take_first]}]", "with the key 'function'"),
        ("num_fewshot: three", "num_fewshot is a whole number, not 'three'"),
        ("generation_kwargs: {max_gen_toks: many}", "generation_kwargs cannot be read"),
        ("fewshot_config: {sampler: balanced}", "'balanced' is not known. There is: default, first_n"),
        ("fewshot_config: {smaples: []}", "Did you mean samples"),
        ("fewshot_config: {samples: []}", "samples is empty"),
        ("doc_to_choice: []", "needs doc_to_choice"),
        ("test_split: [test]", "test_split is a text"),
        ("dataset_kwargs: rows.jsonl", "dataset_kwargs is a mapping"),
        ("description: {a: 1}", "description is a text"),
        ("metadata: {a: &a {b: 1}, c: {<<: *a}}", "line 2: merge keys"),
        ("doc_to_choice: &all [*all]", "aliases (*name) unfold"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_in_one_line(more: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load_harness_task(written(tmp_path, more))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("digits", ["²", "9" * 5000])
def test_a_target_of_digits_that_are_no_index_is_a_text(digits: str, tmp_path: Path) -> None:
    task = load_harness_task(written(tmp_path, f"doc_to_target: '{digits}'"))
    assert task.form.gold(task.items[0].values) == -1


def test_first_n_may_take_every_other_row_and_a_random_draw_refuses_what_is_not_there(tmp_path: Path) -> None:
    in_order = load_harness_task(written(tmp_path, "fewshot_split: test\nfewshot_config: {sampler: first_n}"))
    assert [[shot.index for shot in shots] for shots in draws(in_order, 1)] == [[1], [0], [0]]
    assert [shot.index for shot in draws(in_order, 2)[0]] == [1, 2]
    random = load_harness_task(written(tmp_path, "fewshot_split: test"))
    with pytest.raises(UsageError, match="3 shots cannot be drawn from 3"):
        draws(random, 3)
    assert [len(shots) for shots in draws(random, 1)] == [1, 1, 1]
