"""Whole evaluations on a small model: against each prompt asked alone, from the store, and against each other."""

from __future__ import annotations

import re
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
from nextword.evals.report import write_report
from nextword.evals.results import Collected
from nextword.evals.store import Store, opened
from nextword.evals.stored import compare_stored
from nextword.evals.summary import summarise
from nextword.evals.task import Task
from nextword.evals.task_loader import TaskOptions
from torch_models import torch_model

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
    logs = torch_model(model)(text[:, :-1])[0].double().log_softmax(-1)[len(context) - 1 :]
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
                assert answer.score == float(answer.prediction == answer.gold)


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
    assert [list(result.scores) for result in again.conditions] == [list(result.scores) for result in first.conditions]


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
        for measure in ("raw", "chars", "bytes", "tokens", "pmi"):
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
    assert all(0 < answer.shots < 30 for answer in dropped.conditions[0].answers)
    assert dropped.notes.short_of_shots == 4


def test_free_answers_are_those_that_complete_writes(task: Task, model: LanguageModel) -> None:
    free = table_task(Path(task.source), FORM, generate=True, max_tokens=6)
    with opened(None) as store:
        collected = run(free, model, store, shots=(0, 1), fewshot_seeds=1, limit=4)
    for result in collected.conditions:
        for answer in result.answers:
            prompt = answer.requests[0].context
            assert answer.written == model.complete(prompt, max_tokens=6, stop="\n", temperature=0.0).text


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
    write_report(tmp_path / "page.html", collected, result, {model.name: model})
    page = (tmp_path / "page.html").read_text()
    assert "http" not in re.sub(r'http-equiv|xmlns(:\w+)?="[^"]*"', "", page)  # nothing is asked of another machine
    assert page.count("<svg") == 1
    assert "<!-- " not in page


def test_evaluate_from_python_gives_rows_for_a_table(reviews: Path, model: LanguageModel) -> None:
    result = evaluate(
        reviews, model, shots=(0, 1), templates={"plain": FORM}, design=Design(limit=8, fewshot_seeds=2),
        options=TaskOptions(group="shop"),
    )  # fmt: skip
    assert result.groups is not None
    rows = result.table()
    assert {row["shots"] for row in rows} == {0, 1}
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows)


@pytest.mark.parametrize(
    "given", [{"choice_scoring": "foo"}, {"overflow": "x"}, {"chat_template": "yes"}, {"calibrate": ("a",)}]
)
def test_a_setting_that_is_not_known_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is not known\. Known: "):
        ScoringConfig(**given)


def test_what_python_gives_is_checked_as_the_command_line_s_is() -> None:
    with pytest.raises(UsageError, match="--calibrate names batch twice"):
        ScoringConfig(calibrate=("batch", "batch"))
    with pytest.raises(UsageError, match="--fewshot-sampler 'best' is not known"):
        Design(sampler="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no model given"):
        evaluate("sentiment", [], shots=[0])
