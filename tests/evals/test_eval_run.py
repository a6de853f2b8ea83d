"""Whole evaluations on a small model: against each prompt asked alone, from the store, and against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from table_tasks import table_task

from nextword import load
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals import evaluate
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.export import write_results
from nextword.evals.report import write_report
from nextword.evals.results import LIKELIHOOD_SCORINGS, Collected
from nextword.evals.store import Store, opened
from nextword.evals.stored import compare_stored
from nextword.evals.summary import summarise
from nextword.evals.task import Generation, Task
from nextword.evals.task_loader import TaskOptions

FORM = "Text: {text}\nMood: {label}"


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model(request.param)))


@pytest.fixture(scope="module")
def task(reviews: Path) -> Task:
    return table_task(reviews, FORM)


def run(task: Task, model: LanguageModel, store: Store, **design: object) -> Collected:
    settings = design.pop("settings", ScoringConfig())
    return EvalRun({"form": task}, [model], Design(**design), settings, store).run()  # type: ignore[arg-type]


@torch.inference_mode()
def alone(model: LanguageModel, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    text = torch.tensor([[*context, *continuation]])
    logs = model.loaded.model(text[:, :-1])[0].double().log_softmax(-1)[len(context) - 1 :]
    return float(logs.gather(1, text[0, len(context) :, None]).sum())


def test_every_answer_is_that_of_its_prompt_asked_alone(task: Task, model: LanguageModel) -> None:
    with opened(None) as store:
        collected = run(task, model, store, shots=(0, 2), fewshot_seeds=2, limit=7)
    assert {result.condition.shots for result in collected.conditions} == {0, 2}
    for result in collected.conditions:
        assert len(result.answers) == 7
        for answer in result.answers:
            assert answer.requests[0].context.count("Mood:") == 1 + result.condition.shots
            for each, found in zip(answer.encoded, answer.likelihoods, strict=True):
                assert found.logprob == pytest.approx(alone(model, each.context, each.continuation), abs=1e-3)
            if result.condition.variant in ("plain", "random labels"):
                assert answer.prediction == int(np.argmax(answer.logprobs))
                assert answer.values["score"] == float(answer.prediction == answer.gold)


def test_no_item_stands_in_its_own_prompt_and_all_conditions_share_the_items(task: Task, model: LanguageModel) -> None:
    from_itself = replace(task, fewshot_pool=task.items)
    with opened(None) as store:
        collected = run(from_itself, model, store, shots=(0, 3), fewshot_seeds=3)
    assert len(collected.items) < len(task.items)
    for result in collected.conditions:
        assert [answer.item.row_id for answer in result.answers] == [item.row_id for item in collected.items]
        for answer in result.answers:
            shots, _, question = answer.requests[0].context.rpartition("\n\n")
            assert question not in shots


def test_a_second_run_reads_nothing_and_a_changed_template_only_what_changed(
    task: Task, model: LanguageModel, reviews: Path, tmp_path: Path
) -> None:
    with opened(tmp_path / "store") as store:
        first = run(task, model, store, shots=(0, 1), fewshot_seeds=2, limit=6)
    with opened(tmp_path / "store") as store:
        again = run(task, model, store, shots=(0, 1), fewshot_seeds=2, limit=6)
        more = run(task, model, store, shots=(0, 1), fewshot_seeds=2, limit=6, permutations=1, seed=0)
        other = table_task(reviews, FORM.replace("Mood", "Tone"))
        changed = run(other, model, store, shots=(0,), limit=6)
    assert first.read > 0
    assert (again.read, more.read) == (0, 0)
    assert changed.read > 0
    assert [list(result.scores) for result in again.results] == [list(result.scores) for result in first.results]


def test_an_interrupted_evaluation_goes_on(task: Task, model: LanguageModel, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    design = Design((0, 2), fewshot_seeds=2, limit=20)
    with pytest.raises(Stop), opened(tmp_path / "store") as store:
        EvalRun({"form": task}, [model], design, ScoringConfig(), store).run(stop)
    with opened(tmp_path / "store") as store:
        cost = EvalRun({"form": task}, [model], design, ScoringConfig(), store).cost(timed=False)
        assert 0 < cost.known < cost.requests
        EvalRun({"form": task}, [model], design, ScoringConfig(), store).run()
        assert EvalRun({"form": task}, [model], design, ScoringConfig(), store).cost(timed=False).tokens == 0


def test_every_measure_and_calibration_gives_scores(task: Task, model: LanguageModel) -> None:
    with opened(None) as store:
        for measure in LIKELIHOOD_SCORINGS:
            settings = ScoringConfig(choice_scoring=measure, calibrate=("contextual", "batch"))
            collected = run(task, model, store, shots=(0, 1), fewshot_seeds=1, limit=12, settings=settings)
            variants = {result.condition.variant for result in collected.conditions}
            assert variants == {"plain", "contextual", "batch", "random labels"}
            for result in collected.conditions:
                assert set(result.scores) <= {0.0, 1.0}


def test_similar_shots_are_each_items_nearest(task: Task, model: LanguageModel) -> None:
    with opened(None) as store:
        evaluation = EvalRun({"form": task}, [model], Design((2,), sampler="similar", limit=5), ScoringConfig(), store)
        plain = [each for each in evaluation.questions(0) if each.trial.condition.variant == "plain"]
    chosen = [tuple(shot.row_id for shot in each.trial.shots_of(each.item)) for each in plain]
    assert len(set(chosen)) > 1
    assert all(len(set(shots)) == 2 for shots in chosen)


def test_prompts_longer_than_the_context_are_refused_or_lose_whole_shots(task: Task, model: LanguageModel) -> None:
    if model.spec.kind != "transformer":
        pytest.skip("a recurrent net has no limit")
    large, drop = replace(task, fewshot_pool=task.fewshot_pool * 4), ScoringConfig(overflow="drop-shots")
    with opened(None) as store:
        with pytest.raises(UsageError, match=r"4 of 4 prompts are longer than the model's context of 512 tokens"):
            run(large, model, store, shots=(30,), fewshot_seeds=1, limit=4, baselines=False)
        dropped = run(large, model, store, shots=(30,), fewshot_seeds=1, limit=4, settings=drop, baselines=False)
    assert all(0 < answer.shots < 30 for answer in dropped.results[0].answers)
    assert dropped.notes.short_of_shots == 4


def test_free_answers_are_those_that_complete_writes(task: Task, model: LanguageModel) -> None:
    free = replace(
        task, output="generate_until", form=replace(task.form, labels=()), generation=Generation(("\n",), 6),  # type: ignore[type-var]
    )  # fmt: skip
    free = replace(free, metrics=(replace(task.metrics[0], name="exact_match"),))
    with opened(None) as store:
        collected = run(free, model, store, shots=(0, 1), fewshot_seeds=1, limit=4)
    for result in collected.conditions:
        for answer in result.answers:
            prompt = answer.requests[0].context
            assert answer.written[0] == model.complete(prompt, max_tokens=6, stop="\n", temperature=0.0).text


def test_results_are_told_stored_compared_and_written(task: Task, model: LanguageModel, tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        collected = run(task, model, store, shots=(0, 2), fewshot_seeds=3, limit=30)
        result = summarise(collected, power=0.1)
        store.keep("one", result.to_dict())
        store.keep("two", result.to_dict())
        compared = compare_stored(store.evaluation("one"), store.evaluation("two"))
    assert all(each.comparison.difference == 0 for each in compared)
    assert {line.shots for line in result.rows} == {0, 2}
    for line in result.rows:
        assert line.score.low <= line.score.value <= line.score.high
        assert line.score.value == pytest.approx(np.mean(line.scores))
    assert "to detect a true difference of 0.1 in 80% of runs, " in str(result.power)
    written = write_results(tmp_path / "out", collected)
    samples = [path for path in written if path.name.startswith("samples_")]
    rows = [json.loads(line) for line in samples[0].read_text().splitlines()]
    assert len(rows) == 30
    assert set(rows[0]) >= {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash", "acc"}
    report = json.loads(next(path for path in written if path.name.startswith("results_")).read_text())
    assert report["results"]["reviews"]["acc,none"] == pytest.approx(np.mean([row["acc"] for row in rows]))
    write_report(tmp_path / "page.html", collected, result, {model.name: model})
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 1
    assert "<!-- " not in page


def test_evaluate_from_python_gives_rows_for_a_table(reviews: Path, model: LanguageModel) -> None:
    result = evaluate(
        reviews, model, shots=(0, 1), templates={"plain": FORM}, design=Design(limit=8, fewshot_seeds=2),
        table=TaskOptions("", group="shop"),
    )  # fmt: skip
    assert result.groups is not None
    rows = result.table()
    assert {row["shots"] for row in rows} == {0, 1}
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows)


def test_whole_texts_are_scored_by_byte_in_windows_of_the_context(model: LanguageModel, tmp_path: Path) -> None:
    texts = ["short text", "a long one " * 80]
    (tmp_path / "rows.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "task.yaml").write_text(
        "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.json}}\ntest_split: test\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    )
    result = evaluate(tmp_path / "task.yaml", model, shots=[0])
    logprobs = []
    for text in texts:
        ids = [min(model.tokenizer.stop_ids), *model.tokenizer.encode(text)]
        pieces = (
            [(0, 1)] if len(ids) <= 513 or model.engine.backend.context is None else [(0, 1), (len(ids) - 513, None)]
        )
        total = 0.0
        for number, (start, _) in enumerate(pieces):
            piece = ids[start : start + 513] if model.engine.backend.context else ids
            own = torch.tensor([piece])
            with torch.inference_mode():
                logs = model.loaded.model(own[:, :-1])[0].double().log_softmax(-1)
            each = logs.gather(1, own[0, 1:, None])[:, 0]
            total += float(each.sum() if number == 0 else each[-(len(ids) - 513) :].sum())
        logprobs.append(total)
    sizes = [len(text.encode()) for text in texts]
    line = result.rows[0]
    assert result.metric == "ln p per byte"
    assert line.score.value == pytest.approx(np.mean([p / n for p, n in zip(logprobs, sizes, strict=True)]), abs=1e-4)
    assert line.metrics["bits_per_byte"] == pytest.approx(-sum(logprobs) / sum(sizes) / np.log(2), abs=1e-4)


@pytest.mark.parametrize(
    "given", [{"measure": "foo"}, {"overflow": "x"}, {"chat_template": "yes"}, {"calibrate": ("a",)}]
)
def test_a_setting_that_is_not_known_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is not known\. Known: "):
        ScoringConfig(**given)


def test_what_python_gives_is_checked_as_the_command_line_s_is() -> None:
    with pytest.raises(UsageError, match="--calibrate names batch twice"):
        ScoringConfig(calibrate=("batch", "batch"))
    with pytest.raises(UsageError, match="--fewshot-sampler 'best' is not known"):
        Design(sampler="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="which model"):
        evaluate("sentiment", [], shots=[0])
