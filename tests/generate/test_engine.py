"""The engine: greedy and sampled completions against a loop that recomputes everything, and how a completion ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nextword.base import RunError, UsageError
from nextword.generate import Engine, Limits, Sampling, Step
from nextword.generate.sampling import Distribution, choose, log_softmax
from nextword.models import Transformer, build
from nextword.spec import ModelSpec

SPEC = ModelSpec("transformer", 256, 32, 3, 64, heads=4, kv_heads=2, head_width=8, mlp_width=48, windows=(0, 9, 0))


class ByteDecoder:
    def push(self, id: int) -> str:
        return chr(id)

    def flush(self) -> str:
        return ""


class ByteTokenizer:
    """Every byte is a token; 0 ends a text."""

    stop_ids = frozenset({0})

    def token_text(self, id: int) -> str:
        return chr(id)

    def stream(self) -> ByteDecoder:
        return ByteDecoder()


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    made = build(SPEC).eval()
    for parameter in made.parameters():
        parameter.data.mul_(1.5)
    return made


@pytest.fixture
def engine(model: Transformer) -> Engine:
    return Engine(model, ByteTokenizer())  # type: ignore[arg-type]


@torch.inference_mode()
def slow_completion(
    model: Transformer, prompt: Sequence[int], count: int, sampling: Sampling, choice: int
) -> list[int]:
    """Oracle: no cache and no batch; the whole text is read again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0][0, -1].numpy()
        tokens.append(choose(logits, sampling, sampling.seed or 0, choice, len(tokens))[0])
    return tokens[len(prompt) :]


def by_choice(steps: Any) -> dict[int, list[Step]]:
    found: dict[int, list[Step]] = {}
    for step in steps:
        found.setdefault(step.choice, []).append(step)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_batch_of_uneven_prompts_equals_each_prompt_alone_without_a_cache(
    engine: Engine, model: Transformer, temperature: float
) -> None:
    prompts = [[72, 101], [5] * 17, [1, 2, 3, 4, 5, 6, 7], [72, 101]]
    sampling = Sampling(temperature=temperature, seed=11, logit_bias={0: -1e9})
    found = by_choice(engine.stream(prompts, sampling, Limits(20)))
    free = Sampling(temperature=temperature, seed=11)
    for choice, prompt in enumerate(prompts):
        ids = [step.id for step in found[choice]]
        assert ids == slow_completion(model, prompt, 20, free, choice)


def test_seeded_completions_do_not_depend_on_what_else_is_in_the_batch(engine: Engine) -> None:
    settings = Sampling(seed=5, temperature=1.5)
    alone = [step.id for step in engine.stream([[9, 8]], settings, Limits(30))]
    among = by_choice(engine.stream([[9, 8], [1], [2, 2, 2]], settings, Limits(30)))[0]
    assert [step.id for step in among] == alone


def test_choices_of_one_prompt_differ_and_are_reproducible(engine: Engine) -> None:
    def run() -> list[list[int]]:
        found = by_choice(engine.stream([[7]] * 4, Sampling(seed=1), Limits(12)))
        return [[step.id for step in found[choice]] for choice in range(4)]

    first = run()
    assert first == run()
    assert len({tuple(ids) for ids in first}) == 4


def test_an_unseeded_run_reports_the_seed_that_repeats_it(engine: Engine) -> None:
    first = [step.id for step in engine.stream([[7, 7]], Sampling(), Limits(10))]
    again = [step.id for step in engine.stream([[7, 7]], Sampling(seed=engine.seed), Limits(10))]
    assert first == again


def test_steps_carry_the_probabilities_under_the_model_and_as_drawn(engine: Engine, model: Transformer) -> None:
    sampling = Sampling(temperature=0.7, top_k=5, seed=2)
    tokens = [3, 4, 5]
    for step in engine.stream([tokens], sampling, Limits(6), alternatives=3):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]))[0][0, -1].numpy()
        own = log_softmax(logits)
        assert step.logprob == pytest.approx(own[step.id], abs=1e-4)
        assert step.drawn == pytest.approx(Distribution(logits, sampling).probability(step.id), rel=1e-3)
        assert [a.id for a in step.alternatives] == np.argsort(-own, kind="stable")[:3].tolist()
        assert step.alternatives[0].drawn >= step.alternatives[0].probability
        tokens.append(step.id)


def forced(engine: Engine, text: str, limits: Limits, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Steps of a completion that the sampler is made to draw as `text`."""
    ids = iter(text.encode("latin-1"))
    monkeypatch.setattr("nextword.generate.engine.choose", lambda *_: (next(ids), 1.0))
    return list(engine.stream([[65]], Sampling(), limits))


@pytest.mark.parametrize(
    ("drawn", "stop", "text", "finish"),
    [
        ("hello\0", (), "hello", "end_of_text"),
        ("hello wor", (), "hello wor", "length"),
        ("one. two. ", (". ",), "one", "stop"),
        ("ababac----", ("abac",), "ab", "stop"),
        ("ab----abc", ("abd", "abc"), "ab----", "stop"),
        ("abababaab", ("abx",), "abababaab", "length"),
        ("ab\0", ("abc",), "ab", "end_of_text"),
        ("xyz------", ("z---", "y"), "x", "stop"),
        ("aaaaaaaaa", ("a" * 50,), "aaaaaaaaa", "length"),
    ],
)
def test_completions_end_at_stop_strings_end_of_text_or_length(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, drawn: str, stop: tuple[str, ...], text: str, finish: str
) -> None:
    steps = forced(engine, drawn, Limits(9, stop), monkeypatch)
    assert "".join(step.text for step in steps) == text
    assert steps[-1].finish == finish
    assert all(step.finish is None for step in steps[:-1])


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_clear(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = forced(engine, "abcabd\0", Limits(20, ("abd",)), monkeypatch)
    assert [step.text for step in steps] == ["", "", "abc", "", "", ""]


def test_a_completion_ends_where_the_context_does(engine: Engine) -> None:
    steps = list(engine.stream([[1] * 60], Sampling(seed=0, logit_bias={0: -1e9}), Limits(100)))
    assert (len(steps), steps[-1].finish) == (4, "context")


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"64 tokens.*context holds 64"):
        engine.stream([[1] * 64])


def test_a_prompt_beyond_the_context_is_cut_on_the_left_when_asked(engine: Engine) -> None:
    long = [1] * 80 + [2] * 40
    cut = [step.id for step in engine.stream([long], Sampling(temperature=0), Limits(8, truncate="left"))]
    kept = [step.id for step in engine.stream([long[-56:]], Sampling(temperature=0), Limits(8))]
    assert cut == kept


def test_a_batch_beyond_memory_is_refused_before_it_is_taken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.generate.engine.free_memory", lambda: 1_000_000)
    with pytest.raises(RunError, match="fewer completions"):
        next(engine.stream([[1]] * 500, Sampling(), Limits(4)))


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.stream([[]])


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"stop": ("",)}, {"truncate": "right"}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(limits)).split("_")[0]):
        Limits(**limits)


def test_scores_of_a_text_equal_its_logits_read_at_once(engine: Engine, model: Transformer) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    scores, ranks = engine.score(tokens)
    with torch.inference_mode():
        own = log_softmax(model(torch.tensor([tokens]))[0][0].numpy())
    expected = [own[place, token] for place, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert ranks == [int((own[place] > own[place, token]).sum()) + 1 for place, token in enumerate(tokens[1:])]
