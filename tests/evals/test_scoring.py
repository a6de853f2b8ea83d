"""Likelihoods of continuations equal those of each text read alone, however much the texts share."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextword import load
from nextword.base import UsageError
from nextword.engine import Engine, LanguageModel, ScoreRequest
from nextword.evals.running import answered, tokens_to_read
from nextword.evals.scoring import _APART, _STRETCH, CONTINUATIONS, encode, likelihood, score_requests
from nextword.evals.task import Encoded, Ids, Likelihood, LogprobRequest
from nextword.models import Model, build
from nextword.models.backend import TorchBackend
from nextword.spec import ModelSpec
from nextword.text import Tokenizer

VOCABULARY = 23


def spec_of(kind: str) -> ModelSpec:
    attention = {"heads": 4, "kv_heads": 2, "head_width": 8, "mlp_width": 48} if kind in ("full", "windowed") else {}
    if kind == "windowed":
        attention |= {"windows": (5, 0)}
    real = "transformer" if attention else kind
    return ModelSpec(kind=real, vocabulary=VOCABULARY, width=32, layers=2, context=96, **attention)  # type: ignore


@pytest.fixture(scope="module", params=["full", "windowed", "lstm", "gru", "rnn"])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(3)
    made = build(spec_of(request.param))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@torch.inference_mode()
def alone(model: Model, request: Encoded) -> tuple[float, bool]:
    """ln p by one whole forward pass of the request's own text."""
    text = torch.tensor([request.context + request.continuation])
    logs = model(text[:, :-1])[0].double().log_softmax(-1)[len(request.context) - 1 :]
    target = text[0, len(request.context) :]
    return float(logs.gather(1, target[:, None]).sum()), bool((logs.argmax(-1) == target).all())


def engine_of(model: Model, step_tokens: int | None = None, pages: int = 400) -> Engine:
    backend = TorchBackend(model)
    return Engine(backend, cast(Tokenizer, None), pages * backend.page_bytes, step_tokens)


def score(engine: Engine, requests: list[Encoded]) -> dict[tuple[Ids, Ids], Likelihood]:
    return {
        (handle.request.context, continuation): likelihood(found)
        for handle in answered(engine, score_requests(requests))
        for continuation, found in zip(handle.request.continuations, handle.scores, strict=True)
    }


def check(model: Model, requests: list[Encoded], step_tokens: int, pages: int = 400) -> int:
    """Tokens read, after checking every likelihood and that the number was announced correctly."""
    engine = engine_of(model, step_tokens, pages)
    said = tokens_to_read(engine, score_requests(requests))
    scored = score(engine, requests)
    for request in requests:
        logprob, greedy = alone(model, request)
        found = scored[request.context, request.continuation]
        assert found.logprob == pytest.approx(logprob, abs=1e-3)
        assert (found.greedy, len(found.logprobs)) == (greedy, len(request.continuation))
    assert engine.tokens_read == said
    return said


def family(seed: int, shared: int, items: int, item: int, choices: list[int]) -> list[Encoded]:
    """A shared beginning, items behind it, and continuations of the given lengths behind each item."""
    generator = random.Random(seed)
    trunk = [generator.randrange(VOCABULARY) for _ in range(shared)]
    found = []
    for _ in range(items):
        context = (*trunk, *(generator.randrange(VOCABULARY) for _ in range(generator.randint(1, item))))
        found += [Encoded(context, tuple(generator.randrange(3) for _ in range(length))) for length in choices]
    return found


@pytest.mark.parametrize("step_tokens", [1, 7, 40, 1000])
def test_sharing_changes_no_likelihood(model: Model, step_tokens: int) -> None:
    requests = family(0, 30, 6, 9, [1, 1, 3, 4]) + family(1, 0, 3, 40, [1, 2])
    random.Random(5).shuffle(requests)
    check(model, requests, step_tokens)


def test_what_is_said_is_read_where_memory_holds_little_more_than_one_text(model: Model) -> None:
    requests = family(0, 40, 30, 30, [1, 3, 20])
    pages = -(-90 // TorchBackend(model).page_size) + 3
    assert check(model, requests, 16, pages) > check(model, requests, 16)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=14), min_size=1, max_size=9),
    cuts=st.lists(st.integers(1, 13), min_size=9, max_size=9),
    step_tokens=st.integers(1, 12),
)
def test_any_set_of_texts_is_scored_as_each_alone(texts: list[list[int]], cuts: list[int], step_tokens: int) -> None:
    torch.manual_seed(1)
    model = build(spec_of("full")).eval()
    requests = [
        Encoded(tuple(text[: min(cut, len(text) - 1)]), tuple(text[min(cut, len(text) - 1) :]))
        for text, cut in zip(texts, cuts, strict=False)
    ]
    check(model, requests, step_tokens)


def test_a_shared_beginning_is_computed_once_and_one_token_labels_cost_nothing() -> None:
    model = build(spec_of("full")).eval()
    requests = [
        Encoded((*range(20), 21, item, 2), (label,)) for item in range(10) for label in range(5)
    ]  # 20 tokens shared, 3 an item: the 21 is shared too
    assert check(model, requests, 16) == 20 + 1 + 10 * 2


def test_a_context_is_asked_once_for_all_that_may_follow_it_but_not_for_more_than_a_bound_at_a_time() -> None:
    asked = [Encoded((1, 2), (n,)) for n in range(CONTINUATIONS + 5)] + [Encoded((1, 2), (3,), split_token=True)]
    requests = score_requests(asked)
    assert [len(request.continuations) for request in requests] == [CONTINUATIONS, 5]
    assert {c for request in requests for c in request.continuations} == {each.continuation for each in asked}


def test_neighbours_do_not_follow_each_other_and_none_is_lost() -> None:
    requests = score_requests([Encoded((n, 7), (1,)) for n in range(_STRETCH)])
    contexts = [request.context[0] for request in requests]
    assert sorted(contexts) == list(range(_STRETCH))
    assert all(abs(a - b) >= _APART for a, b in pairwise(contexts))


def test_a_text_beyond_the_context_is_refused_before_anything_is_read() -> None:
    model = build(spec_of("full")).eval()
    engine = engine_of(model)
    for ask in (tokens_to_read, lambda *asked: list(answered(*asked))):
        with pytest.raises(UsageError, match="99 tokens; the model's context holds 96"):
            ask(engine, score_requests([Encoded((1,) * 97, (2, 2))]))
    assert engine.tokens_read == 0


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> LanguageModel:
    return load(str(smollm2_path), dtype="float32")


def test_spaces_at_the_end_of_a_prompt_belong_to_the_continuation(real: LanguageModel) -> None:
    assert encode(LogprobRequest("Answer: ", "yes"), real.tokenizer) == encode(
        LogprobRequest("Answer:", " yes"), real.tokenizer
    )
    found = encode(LogprobRequest("Answer:", " yes"), real.tokenizer)
    assert real.tokenizer.decode(found.continuation) == " yes"
    assert not found.split_token


def test_a_continuation_that_merges_into_the_prompt_is_told(real: LanguageModel) -> None:
    assert encode(LogprobRequest("The answ", "er"), real.tokenizer).split_token


def test_the_real_model_scores_as_it_scores_a_whole_text(real: LanguageModel) -> None:
    text = "The capital of France is"
    requests = [
        encode(LogprobRequest(text, answer), real.tokenizer) for answer in (" Paris.", " London.", " a city in Europe.")
    ]
    scored = score(real.engine, requests)
    for request in requests:
        found = scored[request.context, request.continuation]
        [[whole]] = real.engine.score(
            [ScoreRequest(request.context[:1], (request.context[1:] + request.continuation,))]
        )
        size = len(request.continuation)
        assert found.logprob == pytest.approx(sum(whole.logprobs[-size:]), abs=1e-3)
        assert found.greedy == all(rank == 1 for rank in whole.ranks[-size:])
