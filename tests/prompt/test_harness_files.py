"""The harness's own task files, letter by letter, with what they include: asked as lm-evaluation-harness asks.

tests/oracles/harness/make_files.py wrote the requests; the rows have gaps, doubles, quotation marks and other scripts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextword.prompt.harness import draws, load_harness_task
from nextword.prompt.task import Task, requests

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
