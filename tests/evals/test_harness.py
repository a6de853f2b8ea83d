"""lm-evaluation-harness's task files, rendered as it renders them, byte for byte; and what of them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.base import UsageError
from nextword.evals.harness import draws, load_harness_task
from nextword.evals.jinja import fill
from nextword.evals.task import requests

ORACLE = Path(__file__).parent.parent / "oracles" / "harness"
ASKED: dict[str, dict[str, list[Any]]] = json.loads((ORACLE / "requests.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "count"), [(name, int(count)) for name in ASKED for count in ASKED[name]])
def test_requests_are_the_harness_s_own_with_its_own_draws(name: str, count: int) -> None:
    task = load_harness_task(ORACLE / f"{name}.yaml")
    shots = draws(task, count) if count else [[] for _ in task.items]
    found = [
        [
            item.index,
            *((each.context, each.continuation) if task.output != "loglikelihood_rolling" else (each.continuation,)),
        ]
        for item, own in zip(task.items, shots, strict=True)
        for each in requests(task, own, item)
    ]
    expected = ASKED[name][str(count)]
    if task.output == "generate_until":
        assert [each[:2] for each in found] == [each[:2] for each in expected]
        until = expected[0][2]["until"]
        assert list(task.generation.until) == until
    else:
        assert found == expected


def write(folder: Path, **changes: Any) -> Path:
    import yaml

    (folder / "rows.json").write_text('{"q": "one", "a": 0}\n{"q": "two", "a": 1}\n{"q": "three", "a": 1}\n')
    config: dict[str, Any] = {
        "task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.json"}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}:", "doc_to_target": "a",
        "doc_to_choice": ["no", "yes"],
    }  # fmt: skip
    config = {key: value for key, value in (config | changes).items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "task.yaml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process_docs": "x"}, "process_docs is not run"),
        ({"class": "x"}, "a task in Python"),
        ({"doc_to_txt": "x"}, "'doc_to_txt' is not known. Did you mean doc_to_text"),
        ({"dataset_path": "nyu-mll/glue"}, "would have to be fetched"),
        ({"test_split": "dev"}, "no file is named for the split 'dev'"),
        ({"output_type": "essay"}, "output_type 'essay'"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric 'bleu' is not known"),
        ({"metric_list": [{"metric": "acc", "weight": 2}]}, "no option 'weight'"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regx"}]}]}, "Did you mean regex"),
        ({"generation_kwargs": {"num_beams": 4}}, "num_beams"),
        ({"doc_to_text": "{{question}}"}, "There is: q, a"),
        ({"doc_to_text": "{{q"}, "not valid Jinja"),
        ({"doc_to_choice": "{{q}}"}, "does not give a list of choices"),
        ({"include": "task.yaml"}, "go in a circle"),
        ({"include": "none.yaml"}, "none.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load_harness_task(write(tmp_path, **changes))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_python_is_refused_with_its_line_and_never_imported(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('touched').touch()\n")
    path.write_text(path.read_text() + "description: !function evil.f\n")
    with pytest.raises(UsageError, match=r"line 1\d: !function evil\.f is Python"):
        load_harness_task(path)
    path.write_text(path.read_text().replace("!function evil.f", "!!python/object/apply:os.system [id]"))
    with pytest.raises(UsageError, match="not YAML"):
        load_harness_task(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}", "{{ q.__init__.__globals__ }}", "{{ self._TemplateReference__context }}",
        "{{ 'a' * 10**9 }}", "{% for x in range(10**9) %}{% endfor %}", "{{ 9**9**9 }}", "{{ '%1000000000d' % 1 }}",
        "{{ q.zfill(900000000) }}", "{{ '{:900000000}'.format(q) }}", "{{ q.center(900000000) }}", "{% include 'x' %}",
        "{% for a in range(99999) %}{% for b in range(99) %}xxxxxxxxxxxx{% endfor %}{% endfor %}",
    ],
)  # fmt: skip
def test_a_template_cannot_run_code_or_fill_the_memory(source: str) -> None:
    with pytest.raises(UsageError):
        fill(source, {"q": "text"})


def test_shipped_and_included_keys_meet(tmp_path: Path) -> None:
    base = write(tmp_path).rename(tmp_path / "base.yaml")
    (tmp_path / "task.yaml").write_text(f"include: {base.name}\ntask: other\ndoc_to_text: 'Q {{{{q}}}}'\n")
    task = load_harness_task(tmp_path / "task.yaml")
    assert task.name == "other"
    assert requests(task, [], task.items[0])[1].context == "Q one"
    assert requests(task, [], task.items[0])[1].continuation == " yes"
