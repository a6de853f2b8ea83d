"""The engine: greedy and sampled completions against a loop that recomputes everything, and how a completion ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from nextword import native
from nextword.base import RunError, UsageError
from nextword.engine import Engine, Generation, Limits, Sampling, Step
from nextword.engine.sampling import Distribution, choose, log_softmax
from nextword.models import Transformer, build
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
    return Engine(model, ByteTokenizer())  # type: ignore[arg-type]


@torch.inference_mode()
def slow_completion(model: Transformer, prompt: Sequence[int], count: int, sampling: Sampling) -> list[int]:
    """Oracle: no cache and no batch; the whole text is read again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0][0, -1].numpy()
        tokens.append(choose(logits, sampling, sampling.seed or 0, 0, len(tokens))[0])
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
        assert ids == slow_completion(model, prompt, 20, free)


def test_seeded_completions_do_not_depend_on_what_else_is_in_the_batch(engine: Engine) -> None:
    settings = Sampling(seed=5, temperature=1.5)
    alone = [step.id for step in engine.stream([[9, 8]], settings, Limits(30))]
    among = by_choice(engine.stream([[9, 8], [1], [2, 2, 2]], settings, Limits(30)))[0]
    assert [step.id for step in among] == alone


def test_a_seeded_completion_does_not_depend_on_its_place_in_the_batch(engine: Engine) -> None:
    def texts(prompts: list[list[int]]) -> dict[tuple[int, ...], list[list[int]]]:
        generation = engine.stream(prompts, Sampling(seed=5, temperature=1.5), Limits(30), n=2)
        found = by_choice(generation)
        each = [[[step.id for step in found[2 * place + k]] for k in range(2)] for place in range(len(prompts))]
        return dict(zip(generation.prompts, each, strict=True))

    prompts = [[9, 8], [1], [2, 2, 2]]
    assert texts(prompts) == texts(prompts[::-1])
    assert texts(prompts)[9, 8] == texts([[9, 8]])[9, 8]


def test_equal_prompts_without_a_seed_get_one_each(engine: Engine) -> None:
    generation = engine.stream([[7]] * 4, Sampling(temperature=1e6), Limits(12))  # so hot that no two are alike
    found = by_choice(generation)
    assert len(set(generation.seeds)) == 4
    assert len({tuple(step.id for step in found[choice]) for choice in range(4)}) == 4


def test_interleaved_generations_keep_their_own_seed_and_figures(engine: Engine) -> None:
    def started(seed: int) -> Generation:
        return engine.stream([[7, seed]], Sampling(seed=seed), Limits(10 + seed))

    alone = [[step.id for step in started(seed)] for seed in range(3)]
    running = [started(seed) for seed in range(3)]
    among: list[list[int]] = [[], [], []]
    while steps := [(place, step) for place, each in enumerate(running) if (step := next(each, None)) is not None]:
        for place, step in steps:
            among[place].append(step.id)
    assert among == alone
    assert [each.seeds for each in running] == [(0,), (1,), (2,)]
    assert [each.prompts for each in running] == [((7, 0),), ((7, 1),), ((7, 2),)]
    assert [each.timings.generated_tokens for each in running] == [len(ids) for ids in alone]


def test_a_generation_that_is_closed_ends_and_keeps_what_it_drew(engine: Engine) -> None:
    generation = engine.stream([[7]], Sampling(seed=0, logit_bias={0: -1e9}), Limits(12))
    first = [next(generation), next(generation)]
    generation.close()
    assert list(generation) == []
    assert generation.steps == [first]
    assert generation.finish_reasons == (None,)


@pytest.mark.parametrize("compiled", [True, False])
def test_threads_get_to_the_bit_what_each_would_get_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr("nextword.native.available", lambda: False)
        monkeypatch.setattr("nextword.native.library.available", lambda: False)

    def run(seed: int) -> list[Step]:
        prompt = [seed + 1] * (50 if seed % 2 else 3)  # read with all of torch's threads, or with one
        return list(engine.stream([prompt], Sampling(seed=seed, logit_bias={0: -1e9}), Limits(12)))

    alone = [run(seed) for seed in range(4)]
    with two_threads(), ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(run, range(4))) == alone


def test_a_forward_pass_leaves_the_thread_counts_of_other_threads_alone(engine: Engine) -> None:
    """torch.set_num_threads inside a pass would be what threads that begin meanwhile keep for ever."""
    with two_threads():
        generation = engine.stream([[1]], Sampling(seed=0), Limits(3))
        seen: list[int] = []

        def look(*_: Any) -> None:
            thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()

        hook = engine.model.norm.register_forward_hook(look)
        list(generation)
        hook.remove()
        assert seen
        assert set(seen) == {2}
        assert torch.get_num_threads() == 2


def test_choices_of_one_prompt_differ_and_are_reproducible(engine: Engine) -> None:
    def run() -> list[list[int]]:
        found = by_choice(engine.stream([[7]], Sampling(seed=1), Limits(12), n=4))
        return [[step.id for step in found[choice]] for choice in range(4)]

    first = run()
    assert first == run()
    assert len({tuple(ids) for ids in first}) == 4


def test_an_unseeded_run_reports_the_seed_that_repeats_it(engine: Engine) -> None:
    first = engine.stream([[7, 7]], Sampling(), Limits(10))
    ids = [step.id for step in first]
    assert ids == [step.id for step in engine.stream([[7, 7]], Sampling(seed=first.seeds[0]), Limits(10))]


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
    monkeypatch.setattr("nextword.engine.generation.choose", lambda *_: (next(ids), 1.0))
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
    monkeypatch.setattr("nextword.engine.engine.free_memory", lambda: 1_000_000)
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
