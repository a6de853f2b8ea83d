"""samples_*.jsonl: the records that lm-evaluation-harness itself wrote of the same answers.

tests/oracles/harness/make_samples.py ran the harness with its random model; here its answers are written by us.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_tasks import table_task

from nextword import load
from nextword.cli import main
from nextword.evals import filters, metrics
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.export import write_results
from nextword.evals.results import LIKELIHOOD_SCORINGS, Answer, answer_choice
from nextword.evals.store import opened
from nextword.evals.summary import summarise
from nextword.evals.task import Encoded, Item, Likelihood, Task, requests

MADE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "oracles/harness/samples.json").read_text(encoding="utf-8")
)
ANY = Encoded((1,), (1,))


def answered(task: Task, item: Item, responses: list[Any]) -> Answer:
    """The answer that the harness's model gave to an item."""
    asked, gold = requests(task, [], item), task.format.gold(item.values)
    if task.output == "generate_until":
        values = {
            f"exact_match,{chain.name}": metrics.score_text(
                task.metrics[0], gold, filters.apply(chain, responses[0], item.values)
            )
            for chain in task.filters
        }
        return Answer(item, 0, tuple(asked), (ANY,), written=tuple(responses[0]), gold=gold, values=values)
    if task.output == "loglikelihood_rolling":
        text, found = asked[0].continuation, Likelihood((float(responses[0][0]),), False)
        values = {"logprob": found.logprob, "words": metrics.words(text), "bytes": len(text.encode())}
        return Answer(item, 0, tuple(asked), (ANY,), (found,), gold=gold, values=values)
    likelihoods = [Likelihood((float(each[0][0]),), each[0][1] == "True") for each in responses]
    if task.output == "loglikelihood":
        values = {"logprob": likelihoods[0].logprob, "acc": float(likelihoods[0].greedy)}
        return Answer(item, 0, tuple(asked), (ANY,), tuple(likelihoods), gold=gold, values=values)
    return answer_choice(task, item, 0, asked, [ANY] * len(asked), likelihoods, "raw")


@pytest.mark.parametrize("name", MADE["tasks"])
def test_a_sample_is_written_as_the_harness_writes_it(name: str, tmp_path: Path) -> None:
    made = MADE["tasks"][name]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MADE["rows"]), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(json.dumps(made["config"]), encoding="utf-8")
    task = load_harness_task(tmp_path / "task.yaml")
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for item in task.items:
        responses = next(one["resps"] for one in made["samples"] if one["doc_id"] == item.index)
        for sample in _samples(task, answered(task, item, responses)):
            found[item.index, sample["filter"]] = json.loads(json.dumps(sample))
    assert len(found) == len(made["samples"]) >= 3
    for expected in made["samples"]:
        sample = found[expected["doc_id"], expected["filter"]]
        assert set(sample) == set(expected)
        for key in set(expected) - {"metrics", "brier_score"}:
            assert sample[key] == expected[key], key
        assert set(sample["metrics"]) == set(expected["metrics"])
        if "brier_score" in expected:  # the harness writes an array's print
            gold, shares = expected["brier_score"]
            assert sample["brier_score"][0] == gold
            assert sample["brier_score"][1] == pytest.approx([float(p) for p in shares.strip("[]").split()], abs=1e-8)


@pytest.mark.parametrize(("text", "count"), [("one two", 2), (" one\n\ntwo ", 4), ("", 1), ("one\u00a0two", 2)])
def test_words_are_counted_as_the_harness_counts_them(text: str, count: int) -> None:
    assert metrics.words(text) == count


@pytest.mark.parametrize("told", ['Say {{q}} {% raw %}{% endraw %} {# "no" #} \\n é\n', "{{", "q", "Plain.\n"])
def test_the_files_tell_the_length_and_the_description_that_were_really_used(
    told: str, tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description is literal: whoever runs the exported configuration gets the same words, not Jinja of them."""
    rows = [{"q": f"{n} and 1", "a": str(n)} for n in range(6)]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.json"}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_new_tokens": 90},
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text(json.dumps(config))
    asked = ["eval", "task.yaml", "-m", str(tiny_model()), "--shots", "0", "--limit", "2", "--no-store", "--out", "out",
             "--max-tokens", "3", "--description", told]  # fmt: skip
    assert main(asked) == 0
    sample = json.loads(next(Path("out").rglob("samples_*")).read_text().splitlines()[0])
    arguments = sample["arguments"]["gen_args_0"]
    assert arguments["arg_1"] == {"until": ["\n"], "max_gen_toks": 3}
    exported = json.loads(next(Path("out").rglob("results_*")).read_text())["configs"]["t"]
    assert exported["generation_kwargs"] == arguments["arg_1"]
    exported.pop("num_fewshot")
    Path("again.yaml").write_text(json.dumps(exported))
    task = load_harness_task(Path("again.yaml"))
    assert task.generation.max_tokens == 3
    assert requests(task, [], task.items[sample["doc_id"]])[0].context == arguments["arg_0"]


@pytest.mark.parametrize("measure", ["auto", *LIKELIHOOD_SCORINGS])
def test_the_files_hold_the_numbers_that_are_printed(
    measure: Any, reviews: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Also those of calibrated conditions, and of ways to score that the task's own metrics do not name."""
    task = replace(table_task(reviews, "Text: {text}\nMood: {label}"), metrics=(Metric("acc"), Metric("mcc")))
    model, settings = (
        load(str(tiny_model())),
        ScoringConfig(measure, "Mood:" if measure == "pmi" else None, ("contextual", "batch")),
    )
    with opened(None) as store:
        collected = EvalRun({"form": task}, [model], Design((0, 2), fewshot_seeds=2, limit=12), settings, store).run()
    printed = {(line.shots, line.variant): line for line in summarise(collected).lines}
    files: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for path in write_results(tmp_path, collected):
        if path.name.startswith("results_"):
            results = json.loads(path.read_text())
            samples = [json.loads(row) for row in next(path.parent.glob("samples_*")).read_text().splitlines()]
            condition = results["n-shot"]["reviews"], results["config"]["variant"]
            files.setdefault(condition, []).append({"scores": results["results"]["reviews"], "samples": samples})
    assert set(files) == set(printed)
    for (shots, variant), seeds in files.items():
        calibrated = variant in ("contextual", "batch")
        chain = variant if calibrated else "none"
        metric = "acc" if calibrated else _NAMES["raw" if measure == "auto" else measure]
        means = [seed["scores"][f"{metric},{chain}"] for seed in seeds]
        assert np.mean(means) == pytest.approx(printed[shots, variant].score.value)
        for seed in seeds:
            assert {sample["filter"] for sample in seed["samples"]} == {chain}
            own = [sample[metric] for sample in seed["samples"]]
            assert np.mean(own) == pytest.approx(seed["scores"][f"{metric},{chain}"])
            assert seed["scores"][f"{metric}_stderr,{chain}"] == pytest.approx(np.std(own, ddof=1) / np.sqrt(len(own)))
            for name in {"acc", metric} if not calibrated else ():
                mean = np.mean([sample[name] for sample in seed["samples"]])
                assert seed["scores"][f"{name},none"] == pytest.approx(mean)
            if calibrated:
                chosen = [
                    int(np.argmax([float(score) for score, _ in each["filtered_resps"]])) for each in seed["samples"]
                ]
                assert chosen == [sample["mcc"][1] for sample in seed["samples"]]
                assert not any(key.endswith(",none") for key in seed["scores"])
