"""What an evaluation asks a model, and what it says beforehand that this takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from table_tasks import table_task

from nextword import load
from nextword.backend import Batch, Output
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals.design import Calibrate, Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.results import Collected, ConditionResult
from nextword.evals.store import opened
from nextword.evals.summary import summarise
from nextword.evals.task import Task
from torch_models import torch_model

FORM = "Text: {text}\nMood: {label}"


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model(request.param)))


@pytest.fixture(scope="module")
def transformer(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model("transformer")))


@pytest.fixture(scope="module")
def task(reviews: Path) -> Task:
    return table_task(reviews, FORM)


def run(task: Task, model: LanguageModel, settings: ScoringConfig, **design: Any) -> Collected:
    with opened(None) as store:
        return EvalRun({"form": task}, [model], Design(**design), settings, store).run()


@dataclass
class Through:
    """Tokens that went through models, and rows of logits that tokens were drawn from."""

    tokens: int = 0
    embedded: int = 0
    drawn: int = 0

    def read(self, completions: int) -> int:
        """Tokens but for those that were drawn before: each completion's last is not read."""
        return self.tokens - (self.drawn - completions)


@contextmanager
def counting(models: list[LanguageModel]) -> Iterator[Through]:
    through = Through()
    with pytest.MonkeyPatch.context() as patch:
        for model in models:
            _count(model, through, patch)
        yield through


def _count(model: LanguageModel, through: Through, patch: pytest.MonkeyPatch) -> None:
    backend = model.engine.backend
    forward = backend.forward

    def step(batch: Batch) -> Output:
        if len(batch.hidden_rows):
            through.embedded += len(batch.tokens)
        else:
            through.tokens += len(batch.tokens)
            through.drawn += len(batch.logit_rows)
        return forward(batch)

    patch.setattr(backend, "forward", step)


Mode = tuple[Task, ScoringConfig, dict[str, Any]]


NAMES = (
    "choices, with baselines", "pmi", "calibrated", "similar shots", "dropped shots", "free answers",
    "free answers behind one set of shots", "free answers, sampled",
)  # fmt: skip


def mode_of(name: str, table: Task) -> Mode:
    few: dict[str, Any] = {"shots": (0, 2), "fewshot_seeds": 2, "limit": 5}
    free = table_task(Path(table.source), FORM, generate=True, max_tokens=3)
    long = replace(table, fewshot_pool=table.fewshot_pool * 5)
    every: tuple[Calibrate, ...] = ("contextual", "batch")
    modes = {
        "choices, with baselines": (table, ScoringConfig(), few),
        "pmi": (table, ScoringConfig("pmi"), few),
        "calibrated": (table, ScoringConfig(calibrate=every), few),
        "similar shots": (table, ScoringConfig(), {**few, "sampler": "similar"}),
        "dropped shots": (long, ScoringConfig("pmi", calibrate=every, overflow="drop-shots"), {**few, "shots": (30,)}),
        "free answers": (free, ScoringConfig(), few),
        "free answers behind one set of shots": (free, ScoringConfig(), {**few, "shots": (2,), "fewshot_seeds": 1}),
        "free answers, sampled": (
            replace(free, generation=replace(free.generation, temperature=1.0)), ScoringConfig(), few,
        ),
    }  # fmt: skip
    return modes[name]


@pytest.mark.parametrize("mode", NAMES)
def test_the_cost_said_before_is_what_goes_through_the_model(mode: str, task: Task, model: LanguageModel) -> None:
    asked, settings, design = mode_of(mode, task)
    with opened(None) as store, counting([model]) as through:
        evaluation = EvalRun({"form": asked}, [model], Design(**design), settings, store)
        cost = evaluation.cost(timed=False)
        collected = evaluation.run()
        assert through.embedded == cost.embedded
        again = EvalRun({"form": asked}, [model], Design(**design), settings, store)
        assert again.cost(timed=False).tokens == again.run().read == cost.embedded  # the rest is in the store
    completions = cost.generated // asked.generation.max_tokens
    assert 0 < cost.tokens == collected.read == through.read(completions) + cost.embedded
    assert cost.alone >= cost.tokens
    assert bool(cost.generated) == mode.startswith("free")
    assert bool(cost.embedded) == (mode == "similar shots")


def test_the_cost_is_right_for_several_models_and_forms_and_a_store_that_knows_a_part(
    task: Task, tiny_model: Callable[..., Path], reviews: Path
) -> None:
    models = [load(str(tiny_model("transformer", seed))) for seed in (1, 2)]
    forms = {"one": task, "other": table_task(reviews, FORM.replace("Mood", "Tone"))}
    with opened(None) as store:
        first = EvalRun(
            {"one": task}, models[:1], Design((0, 2), fewshot_seeds=2, limit=5), ScoringConfig(), store
        ).run()
        with counting(models) as through:
            whole = EvalRun(forms, models, Design((0, 2), fewshot_seeds=3, limit=8), ScoringConfig("pmi"), store)
            costs = [whole.cost(number, timed=False) for number in range(2)]
            collected = whole.run()
    assert 0 < costs[0].known < costs[0].requests
    assert costs[1].known == 0
    assert sum(cost.tokens for cost in costs) == collected.read == through.tokens
    assert first.read > 0


def test_one_model_is_not_compared_with_itself(task: Task, transformer: LanguageModel) -> None:
    with opened(None) as store, pytest.raises(UsageError, match="two of the models are the same"):
        EvalRun({"form": task}, [transformer, transformer], Design(), ScoringConfig(), store)


@pytest.mark.parametrize("mode", ["pmi", "free answers, sampled", "similar shots"])
def test_progress_ends_at_the_tokens_that_were_said(mode: str, task: Task, transformer: LanguageModel) -> None:
    asked, settings, design = mode_of(mode, task)
    seen: list[tuple[int, int]] = []
    with opened(None) as store:
        evaluation = EvalRun({"form": asked}, [transformer], Design(**design), settings, store)
        said = evaluation.cost(timed=False).tokens
        evaluation.run(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (said, said)
    assert {total for _, total in seen} == {said}


def plain(collected: Collected, shots: int) -> ConditionResult:
    return next(
        result
        for result in collected.conditions
        if (result.condition.variant, result.condition.shots, result.condition.fewshot_seed) == ("plain", shots, 0)
    )


@torch.inference_mode()
def logprob(model: LanguageModel, context: str, continuation: str) -> float:
    """ln p of a continuation whose tokens are bytes."""
    start = [] if context else [min(model.tokenizer.stop_ids)]
    text = torch.tensor([[*start, *model.encode(context), *model.encode(continuation)]])
    size = len(model.encode(continuation))
    logs = torch_model(model)(text[:, :-1])[0].double().log_softmax(-1)[-size:]
    return float(logs.gather(1, text[0, -size:, None]).sum())


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("premise", [None, "It is"])
def test_pmi_compares_with_the_same_shots_and_the_premise_in_place_of_the_question(
    shots: int, premise: str | None, task: Task, model: LanguageModel
) -> None:
    collected = run(task, model, ScoringConfig("pmi", premise), shots=(shots,), fewshot_seeds=1, limit=4)
    for answer in plain(collected, shots).answers:
        context = answer.requests[0].context
        before, _, _ = context.rpartition("Text: ")
        assert before.count("Mood:") == shots
        differences = [
            logprob(model, context, f" {label}") - logprob(model, before + (premise or "Mood:"), f" {label}")
            for label in ("negative", "positive")
        ]
        assert answer.choice_scores == pytest.approx(differences, abs=1e-3)
        assert answer.score == float(np.argmax(differences) == answer.gold)


@pytest.mark.parametrize(
    ("template", "premise"),
    [("{text}\nMood: {label}", "Mood:"), ("{text}\n\nMood:\n{label} .", "Mood:\n"), ("{text} {label}", "")],
)
def test_the_premise_of_a_template_is_its_last_words(template: str, premise: str, reviews: Path) -> None:
    form = table_task(reviews, template).format
    assert form.template.last_words == premise
    question = form.questions({"text": "x", "label": "y"})[0][0]
    assert question.endswith(premise)  # so that the answer goes on behind both in the same way


def test_a_premise_that_nothing_compares_with_is_refused(task: Task, transformer: LanguageModel) -> None:
    with pytest.raises(UsageError, match="--premise is only used by pmi"):
        run(task, transformer, ScoringConfig("chars", premise="It is"), shots=(0,))


def test_calibration_of_what_has_no_one_set_of_labels_or_shots_is_refused(
    task: Task, transformer: LanguageModel
) -> None:
    rows = [
        replace(item, values={**item.values, "options": ["positive", "negative", item.label]}) for item in task.items
    ]
    own = replace(task, items=tuple(rows), format=replace(task.format, choices_from="options"))
    with pytest.raises(UsageError, match="choices differ from item to item"):
        run(own, transformer, ScoringConfig(calibrate=("batch",)), shots=(0,))
    with pytest.raises(UsageError, match="one set of shots for all items"):
        run(task, transformer, ScoringConfig(calibrate=("contextual",)), shots=(2,), sampler="similar")


def test_shots_that_fit_are_counted_in_each_line_and_in_its_json(task: Task, transformer: LanguageModel) -> None:
    large = replace(task, fewshot_pool=task.fewshot_pool * 5)
    settings = ScoringConfig(calibrate=("contextual",), overflow="drop-shots")
    collected = run(large, transformer, settings, shots=(2, 30), fewshot_seeds=2, limit=12)
    result = summarise(collected)
    for line, told in zip(result.rows, json.loads(json.dumps(result.to_dict()))["rows"], strict=True):
        condition = (line.shots, line.variant)
        counts = [
            [request.context.count("Mood:") - 1 for answer in own.answers for request in answer.requests[:1]]
            for own in collected.conditions
            if (own.condition.shots, own.condition.variant) == condition
        ]
        assert told["effective_shots"] == line.effective_shots == pytest.approx(np.mean(counts))
        assert told["fewest_shots"] == line.fewest_shots == min(map(min, counts))
        assert [each["shots"] for each in told["per_seed"]] == pytest.approx([np.mean(own) for own in counts])
        assert [each["fewest_shots"] for each in told["per_seed"]] == [min(own) for own in counts]
        assert (line.effective_shots < line.shots) == (line.shots == 30)


def test_a_prompt_that_lost_shots_is_calibrated_with_those_that_are_left(
    task: Task, transformer: LanguageModel
) -> None:
    large = replace(task, fewshot_pool=task.fewshot_pool * 5)
    settings, design = (
        ScoringConfig(calibrate=("contextual",), overflow="drop-shots"),
        Design((30,), fewshot_seeds=1, limit=12),
    )
    with opened(None) as store:
        evaluation = EvalRun({"form": large}, [transformer], design, settings, store)
        preparation = evaluation.prepared(0)
        lost = {each.dropped for each in preparation.questions if each.trial.condition.variant == "plain"}
        assert len(lost) > 1
        assert {dropped for _, dropped in preparation.content_free} == lost
        for (_, dropped), rows in preparation.content_free.items():
            texts = [transformer.tokenizer.decode(list(row[0].context)) for row in rows]
            assert all(text.count("Mood:") == 30 - dropped + 1 for text in texts)


def test_what_a_calibration_chose_is_what_its_metrics_measure(task: Task, model: LanguageModel) -> None:
    settings = ScoringConfig(calibrate=("contextual", "batch"))
    collected = run(task, model, settings, shots=(0, 1), fewshot_seeds=2, limit=20)
    corrected = [result for result in collected.conditions if result.condition.variant in ("contextual", "batch")]
    assert len(corrected) == 6
    for result in corrected:
        assert result.metrics["acc"] == pytest.approx(result.scores.mean())
        for answer in result.answers:
            assert answer.prediction == np.argmax(answer.choice_scores)
            assert answer.score == float(answer.prediction == answer.gold)
    before = {result.condition: result for result in collected.conditions if result.condition.variant == "plain"}
    changed = [
        result for result in corrected
        if [a.prediction for a in result.answers]
        != [a.prediction for a in before[replace(result.condition, variant="plain")].answers]
    ]  # fmt: skip
    assert changed


@pytest.mark.parametrize("mode", ["pmi", "free answers, sampled"])
def test_the_estimate_of_time_leaves_no_trace(mode: str, task: Task, transformer: LanguageModel) -> None:
    asked, settings, design = mode_of(mode, task)
    with opened(None) as store:
        evaluation = EvalRun({"form": asked}, [transformer], Design(**design), settings, store)
        timed, untimed = evaluation.cost(), evaluation.cost(timed=False)
        assert timed.seconds > 0 == untimed.seconds
        assert replace(timed, seconds=0.0) == untimed
        assert evaluation.run().read == timed.tokens
        assert evaluation.cost().seconds == 0  # nothing is left to do
