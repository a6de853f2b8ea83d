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

from nextword import load
from nextword.backend import Batch, Output
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals.evaluation import Calibrate, Cell, Collected, Evaluation, Settings
from nextword.evals.harness import load_harness_task
from nextword.evals.store import opened
from nextword.evals.summary import summarise
from nextword.evals.table import TableSettings, table_task
from nextword.evals.task import Task
from nextword.evals.trials import Design

FORM = "Text: {text}\nMood: {label}"
CHOOSES = {
    "output_type": "multiple_choice", "doc_to_text": "Text: {{text}}\nMood:", "doc_to_choice": ["negative", "positive"],
}  # fmt: skip


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model(request.param)))


@pytest.fixture(scope="module")
def transformer(tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model("transformer")))


@pytest.fixture(scope="module")
def task(reviews: Path) -> Task:
    return table_task(reviews, TableSettings(FORM))


@pytest.fixture
def file(tmp_path: Path, reviews: Path) -> Callable[..., Task]:
    """A task file of lm-evaluation-harness over the reviews."""

    def written(**config: Any) -> Task:
        (tmp_path / "reviews.csv").write_bytes(reviews.read_bytes())
        whole = {
            "task": "moods", "dataset_path": "csv", "dataset_kwargs": {"data_files": {"test": "reviews.csv"}},
            "test_split": "test", "doc_to_target": "label", **config,
        }  # fmt: skip
        (tmp_path / "task.yaml").write_text(json.dumps(whole))
        return load_harness_task(tmp_path / "task.yaml")

    return written


def run(task: Task, model: LanguageModel, settings: Settings, **design: Any) -> Collected:
    with opened(None) as store:
        return Evaluation({"form": task}, [model], Design(**design), settings, store).run()


@dataclass
class Through:
    """Tokens that went through models, and rows of logits that tokens were drawn from."""

    tokens: int = 0
    embedded: int = 0
    drawn: int = 0

    def read(self, completions: int) -> int:
        """Tokens but for those that were drawn before: each completion's last is not read."""
        return self.tokens - (self.sampled_prob - completions)


@contextmanager
def counting(models: list[LanguageModel]) -> Iterator[Through]:
    through = Through()
    with pytest.MonkeyPatch.context() as patch:
        for model in models:
            _count(model, through, patch)
        yield through


def _count(model: LanguageModel, through: Through, patch: pytest.MonkeyPatch) -> None:
    backend, inner = model.engine.backend, model.loaded.model
    forward, hidden = backend.forward, inner.hidden

    def step(batch: Batch) -> Output:
        through.tokens += len(batch.tokens)
        through.sampled_prob += len(batch.logit_rows)
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(inner, "hidden", hidden)
            return forward(batch)

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        through.embedded += tokens.numel()
        return hidden(tokens)

    patch.setattr(backend, "forward", step)
    patch.setattr(inner, "hidden", embed)


Mode = tuple[Task, Settings, dict[str, Any]]


def modes(table: Task, file: Callable[..., Task]) -> dict[str, Mode]:
    few: dict[str, Any] = {"shots": (0, 2), "draws": 2, "limit": 5}
    free = table_task(Path(table.source), TableSettings(FORM, free=True))
    short = replace(free, generation=replace(free.generation, max_tokens=3))
    long = replace(table, pool=table.pool * 5)
    every: tuple[Calibrate, ...] = ("contextual", "batch")
    both = [{"metric": "acc"}, {"metric": "acc_mutual_info"}]
    return {
        "choices, with baselines": (table, Settings(), few),
        "pmi": (table, Settings("pmi"), few),
        "acc_mutual_info": (file(**CHOOSES, metric_list=both), Settings(), few),
        "acc_mutual_info as lm-eval has it": (file(**CHOOSES, metric_list=both), Settings(), {**few, "per_item": True}),
        "calibrated": (table, Settings(calibrate=every), few),
        "similar shots": (table, Settings(), {**few, "select": "similar"}),
        "dropped shots": (long, Settings("pmi", calibrate=every, overflow="drop-shots"), {**few, "shots": (30,)}),
        "the right text": (file(output_type="loglikelihood", doc_to_text="Text: {{text}}\nMood:"), Settings(), few),
        "whole texts": (
            file(output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text * 30}}"), Settings(),
            {"limit": 3},
        ),
        "free answers": (short, Settings(), few),
        "free answers behind one set of shots": (short, Settings(), {**few, "shots": (2,), "draws": 1}),
        "free answers, drawn": (
            replace(short, generation=replace(short.generation, temperature=1.0, repeats=3)), Settings(), few,
        ),
    }  # fmt: skip


NAMES = (
    "choices, with baselines", "pmi", "acc_mutual_info", "acc_mutual_info as lm-eval has it", "calibrated",
    "similar shots", "dropped shots", "the right text", "whole texts", "free answers",
    "free answers behind one set of shots", "free answers, drawn",
)  # fmt: skip


@pytest.mark.parametrize("mode", NAMES)
def test_the_cost_said_before_is_what_goes_through_the_model(
    mode: str, task: Task, model: LanguageModel, file: Callable[..., Task]
) -> None:
    asked, settings, design = modes(task, file)[mode]
    with opened(None) as store, counting([model]) as through:
        evaluation = Evaluation({"form": asked}, [model], Design(**design), settings, store)
        cost = evaluation.cost(timed=False)
        collected = evaluation.run()
        assert through.embedded == cost.embedded
        again = Evaluation({"form": asked}, [model], Design(**design), settings, store)
        assert again.cost(timed=False).tokens == again.run().read == cost.embedded  # the rest is in the store
    completions = cost.written // asked.generation.max_tokens
    assert 0 < cost.tokens == collected.read == through.read(completions) + cost.embedded
    assert cost.alone >= cost.tokens
    assert bool(cost.written) == mode.startswith("free")
    assert bool(cost.embedded) == (mode == "similar shots")


def test_the_cost_is_right_for_several_models_and_forms_and_a_store_that_knows_a_part(
    task: Task, tiny_model: Callable[..., Path], reviews: Path
) -> None:
    models = [load(str(tiny_model("transformer", seed))) for seed in (1, 2)]
    forms = {"one": task, "other": table_task(reviews, TableSettings(FORM.replace("Mood", "Tone")))}
    with opened(None) as store:
        first = Evaluation({"one": task}, models[:1], Design((0, 2), draws=2, limit=5), Settings(), store).run()
        with counting(models) as through:
            whole = Evaluation(forms, models, Design((0, 2), draws=3, limit=8), Settings("pmi"), store)
            costs = [whole.cost(number, timed=False) for number in range(2)]
            collected = whole.run()
    assert 0 < costs[0].known < costs[0].requests
    assert costs[1].known == 0
    assert sum(cost.tokens for cost in costs) == collected.read == through.tokens
    assert first.read > 0


def test_one_model_is_not_compared_with_itself(task: Task, transformer: LanguageModel) -> None:
    with opened(None) as store, pytest.raises(UsageError, match="two of the models are the same"):
        Evaluation({"form": task}, [transformer, transformer], Design(), Settings(), store)


@pytest.mark.parametrize("mode", ["pmi", "free answers, drawn", "similar shots"])
def test_progress_ends_at_the_tokens_that_were_said(
    mode: str, task: Task, transformer: LanguageModel, file: Callable[..., Task]
) -> None:
    asked, settings, design = modes(task, file)[mode]
    seen: list[tuple[int, int]] = []
    with opened(None) as store:
        evaluation = Evaluation({"form": asked}, [transformer], Design(**design), settings, store)
        said = evaluation.cost(timed=False).tokens
        evaluation.run(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (said, said)
    assert {total for _, total in seen} == {said}


def plain(collected: Collected, shots: int) -> Cell:
    return next(
        cell
        for cell in collected.cells
        if (cell.condition.variant, cell.condition.shots, cell.condition.draw) == ("plain", shots, 0)
    )


@torch.inference_mode()
def logprob(model: LanguageModel, context: str, continuation: str) -> float:
    """ln p of a continuation whose tokens are bytes."""
    start = [] if context else [min(model.tokenizer.stop_ids)]
    text = torch.tensor([[*start, *model.encode(context), *model.encode(continuation)]])
    size = len(model.encode(continuation))
    logs = model.loaded.model(text[:, :-1])[0].double().log_softmax(-1)[-size:]
    return float(logs.gather(1, text[0, -size:, None]).sum())


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("premise", [None, "It is"])
def test_pmi_compares_with_the_same_shots_and_the_premise_in_place_of_the_question(
    shots: int, premise: str | None, task: Task, model: LanguageModel
) -> None:
    collected = run(task, model, Settings("pmi", premise), shots=(shots,), draws=1, limit=4)
    for answer in plain(collected, shots).answers:
        context = answer.requests[0].context
        before, _, _ = context.rpartition("Text: ")
        assert before.count("Mood:") == shots
        differences = [
            logprob(model, context, f" {label}") - logprob(model, before + (premise or "Mood:"), f" {label}")
            for label in ("negative", "positive")
        ]
        assert answer.choice_scores == pytest.approx(differences, abs=1e-3)
        assert answer.values["score"] == answer.values["pmi"] == float(np.argmax(differences) == answer.gold)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_task_file_may_ask_for_acc_mutual_info_beside_acc(
    shots: int, file: Callable[..., Task], model: LanguageModel
) -> None:
    asked = file(**CHOOSES, metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}])
    cell = plain(run(asked, model, Settings(), shots=(shots,), draws=1, limit=6), shots)
    assert cell.metrics == {
        "acc": np.mean([answer.values["raw"] for answer in cell.answers]),
        "acc_mutual_info": np.mean([answer.values["pmi"] for answer in cell.answers]),
    }


@pytest.mark.parametrize("shots", [0, 2])
def test_in_lm_eval_s_mode_mutual_information_is_with_the_choice_behind_nothing(
    shots: int, file: Callable[..., Task], model: LanguageModel
) -> None:
    asked = file(**CHOOSES, metric_list=[{"metric": "acc_mutual_info"}])
    cell = plain(run(asked, model, Settings(), shots=(shots,), limit=4, per_item=True), shots)
    for answer in cell.answers:
        differences = [
            logprob(model, answer.requests[0].context, f" {label}") - logprob(model, "", f" {label}")
            for label in ("negative", "positive")
        ]
        assert answer.choice_scores == pytest.approx(differences, abs=1e-3)


def test_in_lm_eval_s_mode_choices_that_stand_in_the_questions_are_compared_with_themselves(
    file: Callable[..., Task], transformer: LanguageModel
) -> None:
    asked = file(
        output_type="multiple_choice", doc_to_text="{{ 1 if label == 'positive' else 0 }}", doc_to_target=" it is",
        doc_to_choice=["bad", "good"], target_delimiter=";", metric_list=[{"metric": "acc_mutual_info"}],
    )  # fmt: skip
    cell = plain(run(asked, transformer, Settings(), shots=(0,), limit=4, per_item=True), 0)
    for answer in cell.answers:
        differences = [
            logprob(transformer, choice, "; it is") - logprob(transformer, "", f";{choice}")
            for choice in ("bad", "good")
        ]
        assert answer.choice_scores == pytest.approx(differences, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "premise"),
    [
        ({"doc_to_text": "Text: {{text}}\nMood:"}, "Mood:"),
        ({"doc_to_text": "Text: {{text}}{% if label %}, it says{% endif %}\n\nMood:\n"}, "Mood:\n"),
        ({"doc_to_text": "text"}, ""),
        ({"doc_to_text": "{{text}}"}, ""),
        ({"doc_to_text": "Good or bad?"}, ""),
        ({"doc_to_text": "{{text}}\nMood:", "gen_prefix": "it is"}, "Mood: it is"),
        ({"doc_to_text": "{{text}}\nMood:", "gen_prefix": "from shop {{shop}} it is"}, "it is"),
        ({"doc_to_text": "{{text}}\nMood:", "gen_prefix": "shop"}, ""),
    ],
)
def test_the_premise_of_a_task_file_is_what_it_says_behind_its_last_gap(
    config: dict[str, Any], premise: str, file: Callable[..., Task]
) -> None:
    assert file(**{**CHOOSES, **config}).form.premise == premise


@pytest.mark.parametrize(
    ("template", "premise"),
    [("{text}\nMood: {label}", "Mood:"), ("{text}\n\nMood:\n{label} .", "Mood:\n"), ("{text} {label}", "")],
)
def test_the_premise_of_a_template_is_its_last_words(template: str, premise: str, reviews: Path) -> None:
    form = table_task(reviews, TableSettings(template)).form
    assert form.premise == premise
    question = form.asks({"text": "x", "label": "y"})[0][0]
    assert question.endswith(premise)  # so that the answer goes on behind both in the same way


def test_a_premise_that_nothing_compares_with_is_refused(
    task: Task, transformer: LanguageModel, file: Callable[..., Task]
) -> None:
    with pytest.raises(UsageError, match="--premise is only used by pmi"):
        run(task, transformer, Settings("chars", premise="It is"), shots=(0,))
    asked = file(**CHOOSES, metric_list=[{"metric": "acc_mutual_info"}])
    with pytest.raises(UsageError, match="an empty premise"):
        run(asked, transformer, Settings(premise="It is"), shots=(0,), per_item=True)


def test_calibration_of_what_has_no_one_set_of_labels_or_shots_is_refused(
    task: Task, transformer: LanguageModel, file: Callable[..., Task]
) -> None:
    own = file(**{**CHOOSES, "doc_to_choice": "{{[label, text]}}"})
    with pytest.raises(UsageError, match="choices differ from item to item"):
        run(own, transformer, Settings(calibrate=("batch",)), shots=(0,))
    for design in ({"select": "similar"}, {"per_item": True}):
        with pytest.raises(UsageError, match="one set of shots for all items"):
            run(task, transformer, Settings(calibrate=("contextual",)), shots=(2,), **design)


def test_shots_that_fit_are_counted_in_each_line_and_in_its_json(task: Task, transformer: LanguageModel) -> None:
    large = replace(task, pool=task.pool * 5)
    settings = Settings(calibrate=("contextual",), overflow="drop-shots")
    collected = run(large, transformer, settings, shots=(2, 30), draws=2, limit=12)
    result = summarise(collected)
    for line, told in zip(result.lines, json.loads(json.dumps(result.to_dict()))["lines"], strict=True):
        condition = (line.shots, line.variant)
        counts = [
            [request.context.count("Mood:") - 1 for answer in cell.answers for request in answer.requests[:1]]
            for cell in collected.cells
            if (cell.condition.shots, cell.condition.variant) == condition
        ]
        assert told["effective_shots"] == line.effective_shots == pytest.approx(np.mean(counts))
        assert told["fewest_shots"] == line.fewest_shots == min(map(min, counts))
        assert [each["shots"] for each in told["per_draw"]] == pytest.approx([np.mean(own) for own in counts])
        assert [each["fewest_shots"] for each in told["per_draw"]] == [min(own) for own in counts]
        assert (line.effective_shots < line.shots) == (line.shots == 30)


def test_a_prompt_that_lost_shots_is_calibrated_with_those_that_are_left(
    task: Task, transformer: LanguageModel
) -> None:
    large = replace(task, pool=task.pool * 5)
    settings, design = Settings(calibrate=("contextual",), overflow="drop-shots"), Design((30,), draws=1, limit=12)
    with opened(None) as store:
        evaluation = Evaluation({"form": large}, [transformer], design, settings, store)
        made = evaluation.prepared(0)
        lost = {each.dropped for each in made.questions if each.trial.condition.variant == "plain"}
        assert len(lost) > 1
        assert {dropped for _, dropped in made.content_free} == lost
        for (_, dropped), rows in made.content_free.items():
            texts = [transformer.tokenizer.decode(list(row[0].context)) for row in rows]
            assert all(text.count("Mood:") == 30 - dropped + 1 for text in texts)


def by_hand(cell: Cell) -> dict[str, float]:
    said = [(answer.gold, answer.prediction) for answer in cell.answers]
    hits, wrong = sum(pair == (1, 1) for pair in said), sum((g == 1) != (p == 1) for g, p in said)
    f1 = 2 * hits / (2 * hits + wrong) if hits or wrong else 0.0
    return {"acc": float(np.mean([gold == own for gold, own in said])), "f1": f1}


METRICS = [{"metric": name} for name in ("acc", "acc_norm", "f1", "brier_score", "exact_match")]


def test_what_a_calibration_chose_is_what_its_metrics_measure(file: Callable[..., Task], model: LanguageModel) -> None:
    settings = Settings(calibrate=("contextual", "batch"))
    collected = run(file(**CHOOSES, metric_list=METRICS), model, settings, shots=(0, 1), draws=2, limit=20)
    corrected = [cell for cell in collected.cells if cell.condition.variant in ("contextual", "batch")]
    assert len(corrected) == 6
    for cell in corrected:
        assert cell.metrics == pytest.approx(by_hand(cell))  # not acc_norm, brier_score or exact_match: others' choices
        assert cell.metrics["acc"] == pytest.approx(cell.scores.mean())
        for answer in cell.answers:
            assert answer.prediction == np.argmax(answer.choice_scores)
            assert answer.values["score"] == float(answer.prediction == answer.gold)
    before = {cell.condition: cell for cell in collected.cells if cell.condition.variant == "plain"}
    changed = [
        cell for cell in corrected
        if [a.prediction for a in cell.answers]
        != [a.prediction for a in before[replace(cell.condition, variant="plain")].answers]
    ]  # fmt: skip
    assert changed


def test_a_measure_that_was_asked_for_chooses_what_acc_and_f1_measure(
    file: Callable[..., Task], transformer: LanguageModel
) -> None:
    asked = file(**{**CHOOSES, "doc_to_choice": ["negative", "very positive indeed"]}, metric_list=METRICS,
                 doc_to_target="{{1 if label == 'positive' else 0}}")  # fmt: skip
    by_measure = {}
    for measure in ("auto", "chars"):
        settings = Settings(measure)  # type: ignore[arg-type]
        by_measure[measure] = plain(run(asked, transformer, settings, shots=(0,), limit=30), 0)
    usual, chosen = by_measure["auto"].metrics, by_measure["chars"].metrics
    assert {name: chosen[name] for name in ("acc", "f1")} == pytest.approx(by_hand(by_measure["chars"]))
    assert chosen["acc"] != usual["acc"]
    assert [chosen[name] for name in ("acc_norm", "brier_score", "exact_match")] == [
        usual[name] for name in ("acc_norm", "brier_score", "exact_match")
    ]
    in_its_mode = plain(run(asked, transformer, Settings("chars"), shots=(0,), limit=30, per_item=True), 0)
    likeliest = [int(np.argmax(answer.logprobs)) == answer.gold for answer in in_its_mode.answers]
    assert in_its_mode.metrics["acc"] == np.mean(likeliest)  # as the harness has it
    pmi = plain(run(asked, transformer, Settings("pmi"), shots=(0,), limit=30, per_item=True), 0)
    assert pmi.metrics["acc_mutual_info"] == pmi.scores.mean()


@pytest.mark.parametrize("mode", ["pmi", "free answers, drawn"])
def test_the_estimate_of_time_leaves_no_trace(
    mode: str, task: Task, transformer: LanguageModel, file: Callable[..., Task]
) -> None:
    asked, settings, design = modes(task, file)[mode]
    with opened(None) as store:
        evaluation = Evaluation({"form": asked}, [transformer], Design(**design), settings, store)
        timed, untimed = evaluation.cost(), evaluation.cost(timed=False)
        assert timed.seconds > 0 == untimed.seconds
        assert replace(timed, seconds=0.0) == untimed
        assert evaluation.run().read == timed.tokens
        assert evaluation.cost().seconds == 0  # nothing is left to do
