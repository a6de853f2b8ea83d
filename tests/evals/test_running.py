"""Completions through an engine: what their prompts read is known before, whatever is written meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from nextword import load
from nextword.base import UsageError
from nextword.engine import Engine, LanguageModel, Request, SamplingParams, ScoreRequest, StopConfig
from nextword.evals.running import answered, descending, tokens_to_read
from nextword.models.backend import TorchBackend
from torch_models import torch_model

Prompts = list[tuple[int, ...]]


@pytest.fixture(scope="module", params=["transformer", "lstm"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LanguageModel:
    return load(str(tiny_model(request.param)))


def engine_of(model: LanguageModel, tokens: int) -> Engine:
    """An engine whose memory holds so many tokens."""
    backend = TorchBackend(torch_model(model))
    return Engine(backend, model.tokenizer, tokens // backend.page_size * backend.page_bytes, step_tokens=32)


def prompts(seed: int, count: int) -> Prompts:
    """Prompts that share beginnings, some of them a beginning of another one."""
    generator = random.Random(seed)
    made: Prompts = [tuple(generator.randrange(97, 101) for _ in range(generator.randint(1, 60)))]
    while len(made) < count:
        before = generator.choice(made)
        made.append(
            before[: generator.randint(1, 60)]
            + tuple(generator.randrange(97, 101) for _ in range(generator.randint(0, 40)))
        )
    return list(dict.fromkeys(made))


def completions(asked: Sequence[tuple[int, ...]], temperature: float, most: int) -> list[Request]:
    sampling = SamplingParams(temperature=temperature, seed=5)
    return descending([Request(prompt, sampling, StopConfig(most, ("a", "\n"))) for prompt in asked])


@pytest.mark.parametrize("memory", [300, 1000, 20_000])
def test_what_prompts_read_is_known_before_however_long_completions_become(memory: int, model: LanguageModel) -> None:
    for seed in range(4):
        engine = engine_of(model, memory)
        requests = completions(prompts(seed, 40), 1.0, 50)
        said = tokens_to_read(engine, requests)
        lengths = {len(steps) for handle in answered(engine, requests) for steps in handle.tokens}
        assert engine.tokens_read == said
        assert len(lengths) > 5


def test_a_prompt_that_goes_on_as_another_one_was_completed_is_read_as_was_said(model: LanguageModel) -> None:
    before = prompts(0, 10)
    written = [tuple(model.complete(prompt, temperature=0, max_tokens=40).ids) for prompt in before]
    longer = [prompt + ids[:size] for prompt, ids in zip(before, written, strict=True) for size in (1, 9, 40)]
    requests = completions(list(dict.fromkeys(before + longer)), 0.0, 40)
    engine = engine_of(model, 20_000)
    said = tokens_to_read(engine, requests)
    assert len(list(answered(engine, requests))) == len(requests)
    assert engine.tokens_read == said


def test_a_bounded_number_is_under_way_and_answers_come_before_the_last_is_submitted(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(model, 20_000)
    submit, submitted = engine.submit, []
    monkeypatch.setattr(engine, "submit", lambda request: submitted.append(request) or submit(request))
    requests = [ScoreRequest((1, n, m), ((3,), (4,))) for n in range(30) for m in range(30)]
    under_way = [len(submitted) - number for number, _ in enumerate(answered(engine, requests))]
    assert 8 < max(under_way) <= 32  # with two continuations each
    assert len(submitted) == len(requests)


def test_what_was_not_answered_is_cancelled(model: LanguageModel) -> None:
    engine = engine_of(model, 20_000)
    with closing(answered(engine, completions(prompts(1, 30), 1.0, 50))) as handles:
        next(handles)
        assert engine.sequences_under_way
    assert not engine.sequences_under_way
    assert engine.pages_used == 0


def test_the_prefix_cache_is_forgotten_but_not_under_a_request(model: LanguageModel) -> None:
    engine = engine_of(model, 20_000)
    request = Request(tuple(range(97, 117)), SamplingParams(temperature=0), StopConfig(3))

    def read() -> int:
        before = engine.tokens_read
        engine.complete([request])
        return engine.tokens_read - before

    assert (read(), read()) == (20, 1)
    engine.clear_cache()
    assert read() == 20
    handle = engine.submit(request)
    with pytest.raises(UsageError, match="completing another request"):
        engine.clear_cache()
    handle.cancel()
    engine.clear_cache()
