"""The engine over real models: completions against a loop that recomputes everything, and how a completion ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from nextword import native
from nextword.base import UsageError
from nextword.engine import (
    CompletionHandle,
    Engine,
    HiddenRequest,
    LogitsRequest,
    Request,
    SamplingParams,
    ScoreRequest,
    StopConfig,
    Stream,
    Token,
)
from nextword.engine.sampler import Draw, SampleRow, Uniforms, log_softmax, sample
from nextword.engine.sampling_params import ORDER
from nextword.models import Transformer, build
from nextword.models.backend import TorchBackend
from nextword.spec import ModelSpec

SPEC = ModelSpec("transformer", 256, 32, 3, 64, heads=4, kv_heads=2, head_width=8, mlp_width=48, windows=(0, 9, 0))


@contextmanager
def two_threads() -> Iterator[None]:
    """torch and the compiled kernels share their work between two threads, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    native.set_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        native.set_threads(before)


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
    return new_engine(model)


def new_engine(model: Transformer) -> Engine:
    return Engine(TorchBackend(model), ByteTokenizer())  # type: ignore[arg-type]


def complete(
    engine: Engine, prompt: Sequence[int], sampling: SamplingParams, tokens: int = 12, **more: Any
) -> list[Token]:
    return engine.submit(Request(tuple(prompt), sampling, StopConfig(tokens), **more)).wait().tokens[0]


def ids_of(handle: CompletionHandle) -> list[list[int]]:
    return [[step.id for step in steps] for steps in handle.tokens]


@torch.inference_mode()
def slow_completion(model: Transformer, prompt: Sequence[int], count: int, sampling: SamplingParams) -> list[int]:
    """Oracle: no cache and no batch; the whole text is read again for every token."""
    tokens, uniforms = list(prompt), Uniforms(sampling.seed or 0, 0)
    for _ in range(count):
        logits = model.logits(model.hidden(torch.tensor([tokens])))[0, -1:].numpy()
        row = SampleRow(sampling, 0.0 if sampling.greedy else uniforms.at(len(tokens)), prompt, tokens[len(prompt) :])
        draw = sample(logits, [row])[0]
        assert isinstance(draw, Draw)
        tokens.append(draw.token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_uneven_prompts_side_by_side_equal_each_alone_without_a_cache(
    engine: Engine, model: Transformer, temperature: float
) -> None:
    prompts = [[72, 101], [5] * 17, [1, 2, 3, 4, 5, 6, 7], [72, 101]]
    sampling = SamplingParams(temperature=temperature, seed=11, logit_bias={0: -1e9})
    handles = engine.complete(Request(tuple(prompt), sampling, StopConfig(20)) for prompt in prompts)
    for prompt, handle in zip(prompts, handles, strict=True):
        assert ids_of(handle) == [slow_completion(model, prompt, 20, sampling)]


def test_a_seeded_completion_depends_on_nothing_that_runs_beside_it(engine: Engine) -> None:
    def texts(prompts: list[list[int]]) -> dict[tuple[int, ...], list[list[int]]]:
        requests = [Request(tuple(p), SamplingParams(seed=5, temperature=1.5), StopConfig(30), n=2) for p in prompts]
        return {handle.prompt: ids_of(handle) for handle in engine.complete(requests)}

    prompts = [[9, 8], [1], [2, 2, 2]]
    assert texts(prompts) == texts(prompts[::-1])
    assert texts(prompts)[9, 8] == texts([[9, 8]])[9, 8]


def test_equal_prompts_without_a_seed_get_one_each(engine: Engine) -> None:
    handles = engine.complete([Request((7,), SamplingParams(temperature=1e6), StopConfig(12))] * 4)  # no two are alike
    assert len({handle.seed for handle in handles}) == 4
    assert len({tuple(ids_of(handle)[0]) for handle in handles}) == 4


def test_interleaved_completions_keep_their_own_seed_and_figures(engine: Engine) -> None:
    def started(seed: int) -> CompletionHandle:
        return engine.submit(Request((7, seed), SamplingParams(seed=seed), StopConfig(10 + seed)))

    alone = [[step.id for step in started(seed)] for seed in range(3)]
    running = [started(seed) for seed in range(3)]
    among: list[list[int]] = [[], [], []]
    while steps := [(place, step) for place, each in enumerate(running) if (step := next(each, None)) is not None]:
        for place, step in steps:
            among[place].append(step.id)
    assert among == alone
    assert [each.seed for each in running] == [0, 1, 2]
    assert [each.prompt for each in running] == [(7, 0), (7, 1), (7, 2)]
    assert [each.timings.generated_tokens for each in running] == [len(ids) for ids in alone]


def test_a_stream_that_is_closed_ends_and_keeps_what_it_drew(engine: Engine) -> None:
    stream = Stream(engine.submit(Request((7,), SamplingParams(seed=0, logit_bias={0: -1e9}), StopConfig(12))))
    first = [next(stream), next(stream)]
    stream.close()
    assert list(stream) == []
    assert stream.tokens == [first]
    assert stream.finish_reasons == (None,)
    assert engine.pages_used == 0


def test_a_stream_that_is_left_and_forgotten_takes_no_more_steps(engine: Engine) -> None:
    for step in Stream(engine.submit(Request((7,), SamplingParams(seed=0, logit_bias={0: -1e9}), StopConfig(30)))):
        if step.position == 4:
            break
    del step
    assert not engine.step()
    assert engine.pages_used == 0


@pytest.mark.parametrize("compiled", [True, False])
def test_threads_get_to_the_bit_what_each_would_get_alone(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr("nextword.native.available", lambda: False)
        monkeypatch.setattr("nextword.native.bindings.available", lambda: False)
    engine = new_engine(model)

    def run(seed: int) -> list[int]:
        prompt = [seed + 1] * (50 if seed % 2 else 3)  # read with all of torch's threads, or with one
        return [step.id for step in complete(engine, prompt, SamplingParams(seed=seed, logit_bias={0: -1e9}))]

    alone = [run(seed) for seed in range(4)]
    with two_threads(), ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(run, range(4))) == alone


def test_a_step_leaves_the_thread_counts_of_other_threads_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.set_num_threads inside a pass would be what threads that begin meanwhile keep for ever."""
    seen: list[int] = []
    logits = Transformer.logits

    def look(model: Transformer, hidden: torch.Tensor) -> torch.Tensor:
        thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return logits(model, hidden)

    monkeypatch.setattr(Transformer, "logits", look)
    with two_threads():
        complete(engine, [1], SamplingParams(seed=0), 3)
        assert seen
        assert set(seen) == {2}
        assert torch.get_num_threads() == 2


def test_samples_of_one_prompt_differ_and_are_reproducible(engine: Engine) -> None:
    def run() -> list[list[int]]:
        return ids_of(engine.submit(Request((7,), SamplingParams(seed=1), StopConfig(12), n=4)).wait())

    first = run()
    assert first == run()
    assert len({tuple(ids) for ids in first}) == 4


def test_an_unseeded_run_reports_the_seed_that_repeats_it(engine: Engine) -> None:
    first = engine.submit(Request((7, 7), stop=StopConfig(10))).wait()
    assert [step.id for step in complete(engine, [7, 7], SamplingParams(seed=first.seed), 10)] == ids_of(first)[0]


def test_steps_carry_the_probabilities_under_the_model_and_as_drawn(engine: Engine, model: Transformer) -> None:
    tokens = [3, 4, 5]
    for step in complete(engine, tokens, SamplingParams(temperature=0.7, top_k=5, seed=2), 6, top_logprobs=3):
        with torch.inference_mode():
            logits = model.logits(model.hidden(torch.tensor([tokens])))[0, -1].numpy()
        own = log_softmax(logits)
        likeliest = np.argsort(-own, kind="stable")
        weights = np.exp(own[likeliest[:5]] / 0.7)
        assert step.logprob == pytest.approx(own[step.id], abs=1e-4)
        assert step.sampled_prob == pytest.approx(weights[likeliest[:5] == step.id][0] / weights.sum(), rel=1e-3)
        assert [a.id for a in step.alternatives] == likeliest[:3].tolist()
        assert step.alternatives[0].sampled_prob >= step.alternatives[0].probability
        tokens.append(step.id)


def forced(engine: Engine, text: str, stop: StopConfig, monkeypatch: pytest.MonkeyPatch) -> list[Token]:
    """Steps of a completion that the sampler is made to draw as `text`."""
    ids = iter(text.encode("latin-1"))
    monkeypatch.setattr("nextword.engine.engine.sample", lambda *_: [Draw(next(ids), 1.0, 0.0, ())])
    return engine.submit(Request((65,), stop=stop)).wait().tokens[0]


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
    steps = forced(engine, drawn, StopConfig(9, stop), monkeypatch)
    assert "".join(step.text for step in steps) == text
    assert steps[-1].finish == finish
    assert all(step.finish is None for step in steps[:-1])


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_clear(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = forced(engine, "abcabd\0", StopConfig(20, ("abd",)), monkeypatch)
    assert [step.text for step in steps] == ["", "", "abc", "", "", ""]


def test_a_completion_ends_where_the_context_does(engine: Engine) -> None:
    steps = complete(engine, [1] * 60, SamplingParams(seed=0, logit_bias={0: -1e9}), 100)
    assert (len(steps), steps[-1].finish) == (4, "context")


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"64 tokens.*context holds 64"):
        engine.submit(Request((1,) * 64))


def test_a_prompt_beyond_the_context_is_cut_on_the_left_when_asked(engine: Engine) -> None:
    long = [1] * 80 + [2] * 40
    cut = complete(engine, long, SamplingParams(temperature=0), 8, truncate="left")
    assert [step.id for step in cut] == [
        step.id for step in complete(engine, long[-56:], SamplingParams(temperature=0), 8)
    ]


@pytest.mark.parametrize(
    "request_", [Request(()), LogitsRequest(()), ScoreRequest((), ((1,),)), ScoreRequest((1,), ((),))]
)
def test_nothing_to_read_is_refused(engine: Engine, request_: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.submit(request_)


def test_a_bias_for_a_token_that_is_not_there_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"token 256; the vocabulary has ids 0 to 255"):
        engine.submit(Request((1,), SamplingParams(logit_bias={256: 1.0})))


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"stop": ("",)}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(limits)).split("_")[0]):
        StopConfig(**limits)


def test_scores_of_a_text_equal_its_logits_read_at_once(engine: Engine, model: Transformer) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    [[score]] = engine.score([ScoreRequest((tokens[0],), (tuple(tokens[1:]),))])
    with torch.inference_mode():
        own = log_softmax(model.logits(model.hidden(torch.tensor([tokens])))[0].numpy())
    expected = [own[place, token] for place, token in enumerate(tokens[1:])]
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)
    assert list(score.ranks) == [int((own[p] > own[p, token]).sum()) + 1 for p, token in enumerate(tokens[1:])]


def test_scores_come_with_the_likeliest_tokens(engine: Engine, model: Transformer) -> None:
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    with torch.inference_mode():
        own = log_softmax(model.logits(model.hidden(torch.tensor([tokens])))[0].numpy())
    handle = engine.submit(ScoreRequest((tokens[0],), (tuple(tokens[1:]),), top_logprobs=3)).wait()
    assert sorted(handle.top) == list(range(10))
    for place, likeliest in handle.top.items():
        best = np.argsort(-own[place], kind="stable")[:3]
        assert [id for id, _ in likeliest] == best.tolist()
        np.testing.assert_allclose([logprob for _, logprob in likeliest], own[place][best], atol=1e-4)


def test_hidden_states_are_read_beside_other_requests(engine: Engine, model: Transformer) -> None:
    texts = [[3, 1, 4, 1, 5], [9, 2, 6], [5] * 20]
    handles = [engine.submit(HiddenRequest(tuple(text))) for text in texts]
    completing = engine.submit(Request((3, 1, 4), SamplingParams(seed=1), StopConfig(5)))
    for text, handle in zip(texts, handles, strict=True):
        with torch.inference_mode():
            expected = model.hidden(torch.tensor([text]))[0].numpy()
        np.testing.assert_allclose(handle.wait().hidden, expected, atol=1e-4, rtol=1e-4)
    assert len(completing.wait().tokens[0]) > 0
    assert engine.pages_used == 0


@pytest.mark.parametrize("order", [ORDER, ("top_k", "temperature")])
def test_the_kept_mass_is_that_of_all_that_could_be_drawn(engine: Engine, order: tuple[str, ...]) -> None:
    own = np.sort(np.exp(log_softmax(engine.logits([3, 1, 4]))))[::-1]
    kept = {"top_k": own[:5].sum(), "all": 1.0, "greedy": own[0]}
    settings = {"top_k": {"top_k": 5, "temperature": 0.7}, "all": {"temperature": 2.0}, "greedy": {"temperature": 0}}
    for name, setting in settings.items():
        request = Request((3, 1, 4), SamplingParams(seed=1, order=order, **setting), StopConfig(1), kept_mass=True)
        [token] = engine.submit(request).wait().tokens[0]
        assert token.kept_mass == pytest.approx(kept[name])


def test_new_tokens_are_taken_without_waiting(engine: Engine) -> None:
    handle = engine.submit(Request((3, 1, 4), SamplingParams(seed=1, logit_bias={0: -math.inf}), StopConfig(4)))
    assert handle.take() == []
    taken = []
    while not handle.done:
        engine.step()
        taken += handle.take()
    assert taken == handle.tokens[0]
    assert len(taken) == 4
