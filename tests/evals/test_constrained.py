"""The choice that is written where nothing but the choices may be: greedy decoding with every other token forbidden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from table_tasks import table_task

from nextword import load
from nextword.base import UsageError
from nextword.engine import LanguageModel
from nextword.evals.design import Design, ScoringConfig
from nextword.evals.eval_run import EvalRun
from nextword.evals.runner import constrained_writings
from nextword.evals.store import opened
from torch_models import torch_model

CONSTRAINED = ScoringConfig(choice_scoring="constrained")


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model(request.param)))


@torch.inference_mode()
def greedy_among(model: LanguageModel, prompt: tuple[int, ...], choices: tuple[str, ...]) -> str:
    """Oracle: the whole text is read again for every token, and only tokens that lead to a choice are compared."""
    vocabulary = {token: model.tokenizer.token_text(token) for token in range(model.spec.vocabulary)}
    ids, written = list(prompt), ""
    while True:
        logits = torch_model(model)(torch.tensor([ids]))[0, -1]
        going = {
            token: written + text
            for token, text in vocabulary.items()
            if text and token not in model.tokenizer.stop_ids and any(c.startswith(written + text) for c in choices)
        }
        stops = {token: written for token in model.tokenizer.stop_ids if written in choices}
        allowed = {**going, **stops}
        best = max(sorted(allowed), key=lambda token: float(logits[token]))
        ids.append(best)
        if best in stops or not any(c.startswith(allowed[best]) and c != allowed[best] for c in choices):
            return allowed[best]
        written = allowed[best]


@pytest.mark.parametrize("form", ["Text: {text}\nMood: {label}", "{text} It was{label}"])
def test_the_choice_is_what_greedy_decoding_writes_among_the_choices(
    reviews: Path, model: LanguageModel, form: str
) -> None:
    task = table_task(reviews, form)
    with opened(None) as store:
        evaluation = EvalRun(
            {"form": task}, [model], Design(shots=(0, 2), fewshot_seeds=2, limit=6), CONSTRAINED, store
        )
        collected = evaluation.run()
        wanted = constrained_writings(evaluation.runners[0], evaluation.questions(0))
    plain = [result for result in collected.conditions if result.condition.variant in ("plain", "random labels")]
    answers = [answer for result in plain for answer in result.answers]
    assert {answer.written for answer in answers} <= {choice for _, way in wanted for choice in way.choices}
    checked = {(each.context, answer.written) for answer in answers for each in answer.encoded}
    for prompt, way in wanted:
        assert (prompt, greedy_among(model, prompt, way.choices)) in checked
    for answer in answers:
        assert answer.choice_scores[int(answer.prediction)] == 1
        assert answer.score == float(answer.prediction == answer.gold)


def test_what_is_said_before_is_what_is_read(reviews: Path, model: LanguageModel) -> None:
    task = table_task(reviews, "Text: {text}\nMood: {label}")
    with opened(None) as store:
        evaluation = EvalRun(
            {"form": task}, [model], Design(shots=(0, 2), fewshot_seeds=2, limit=6), CONSTRAINED, store
        )
        said = evaluation.cost()
        evaluation.run()
        assert evaluation.runners[0].tokens_read == said.tokens
        assert said.generated > 0
        assert evaluation.cost().tokens == evaluation.cost().generated == 0


def test_choices_behind_different_prompts_are_refused(model: LanguageModel, reviews: Path) -> None:
    task = table_task(reviews, "Text: {text}\nMood: {label}")
    with opened(None) as store:
        evaluation = EvalRun({"form": task}, [model], Design(shots=(0,), limit=1), CONSTRAINED, store)
        [question] = evaluation.questions(0)[:1]
        first, *others = question.encoded
        object.__setattr__(question, "encoded", (first, *(type(first)((1, 2), each.continuation) for each in others)))
        with pytest.raises(UsageError, match=r"different tokens.*--choice-scoring raw"):
            constrained_writings(evaluation.runners[0], [question])
