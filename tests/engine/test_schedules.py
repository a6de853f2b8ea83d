"""Whatever runs beside it, and in whatever order pages come and go, a request gives what it gives alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fake_backend import FakeBackend, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import run_schedule, unpaused

from handle_results import result
from nextword.base import UsageError
from nextword.engine import CompletionHandle, Engine, LogitsRequest, Request, SamplingParams, ScoreRequest, StopConfig
from nextword.engine.request import AnyRequest


def fake_engine(backend: FakeBackend, pages: int = 1000, **limits: int) -> Engine:
    return Engine(backend, FakeTokenizer(), cache_bytes=pages * backend.page_bytes, **limits)  # type: ignore[arg-type]


def alone(request: AnyRequest, like: FakeBackend) -> Any:
    backend = FakeBackend(like.rewindable, page_size=64, context=like.context, step_tokens=64)
    return result(fake_engine(backend).submit(unpaused(request)).wait())


@settings(max_examples=150)
@given(rewindable=st.booleans(), page_size=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 2**32))
def test_every_request_of_a_random_schedule_gives_what_it_gives_alone(
    rewindable: bool, page_size: int, seed: int
) -> None:
    rng = random.Random(seed)
    context = rng.choice([None, 60])
    backend = FakeBackend(rewindable, page_size, context=context, step_tokens=rng.choice([1, 3, 8, 16]))
    pages = rng.choice([60, 90, 300]) // page_size + 5
    engine = fake_engine(backend, pages, max_sequences=rng.choice([1, 3, 8]))
    for handle in run_schedule(engine, rng, vocabulary=10):
        assert handle.done
        if not handle.cancelled:
            assert result(handle) == alone(handle.request, backend)
    assert (engine.pages_used, engine.sequences_under_way) == (0, 0)


def test_pages_that_run_out_preempt_the_sequence_that_came_last() -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, pages=6)
    requests = [Request((n,), SamplingParams(seed=n, logit_bias={10: -1e9}), StopConfig(20)) for n in range(3)]
    handles = [engine.submit(request) for request in requests]
    while not all(handle.done for handle in handles):
        engine.step()
    computed = sum(len(batch.tokens) for batch in backend.forwarded)
    assert computed > 3 * 20, "nothing was computed twice: no sequence was preempted"
    assert [result(handle) for handle in handles] == [alone(request, backend) for request in requests]


@pytest.mark.parametrize("limits", [{"max_sequences": 2}, {"pages": 9}])
def test_a_request_whose_tokens_nobody_takes_pauses_and_makes_room(limits: dict[str, int]) -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, **limits)
    requests = [
        Request((n,), SamplingParams(seed=n, logit_bias={10: -1e9}), StopConfig(20), buffer=6 if n < 2 else None)
        for n in range(4)
    ]
    handles = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    assert [len(handle.tokens[0]) for handle in handles] == [6, 6, 20, 20]
    assert [handle.paused for handle in handles] == [True, True, False, False]
    taken = handles[0].take()
    assert (len(taken), engine.step(), handles[1].paused) == (6, True, True)
    assert taken + list(handles[0]) == handles[0].tokens[0]
    handles[1].cancel()
    assert [result(handle) for handle in handles if not handle.cancelled] == [
        alone(request, backend) for request in requests if request is not requests[1]
    ]
    assert (engine.pages_used, engine.sequences_under_way) == (0, 0)


def test_a_long_prompt_is_read_in_chunks_between_the_tokens_of_others() -> None:
    backend = FakeBackend(step_tokens=8)
    engine = fake_engine(backend)
    short = engine.submit(Request((1,), SamplingParams(seed=0), StopConfig(30)))
    engine.step()
    engine.submit(Request((2,) * 50, SamplingParams(seed=0), StopConfig(1)))
    before = len(short.tokens[0])
    for _ in range(5):
        engine.step()
    assert len(short.tokens[0]) == before + 5
    assert [len(batch.tokens) for batch in backend.forwarded[1:6]] == [8] * 5


@pytest.mark.parametrize("rewindable", [True, False])
def test_samples_of_one_prompt_read_it_once(rewindable: bool) -> None:
    engine = fake_engine(FakeBackend(rewindable, step_tokens=64))
    handle = engine.submit(Request(tuple(range(10)) * 5, SamplingParams(seed=1), StopConfig(5), n=16)).wait()
    assert engine.tokens_read == 50 + 15  # each further sample computes the prompt's last token for its logits
    assert handle.timings.prompt_tokens == 50


@pytest.mark.parametrize("rewindable", [True, False])
def test_requests_that_begin_alike_share_what_they_begin_with(rewindable: bool) -> None:
    engine = fake_engine(FakeBackend(rewindable, page_size=1, step_tokens=64))
    prefix = tuple(range(10)) * 4
    engine.complete([Request((*prefix, n, n), SamplingParams(seed=n), StopConfig(2)) for n in range(8)])
    assert engine.tokens_read == 40 + 8 * 2


def test_the_beginning_of_a_page_is_shared_by_copying_it() -> None:
    engine = fake_engine(FakeBackend(page_size=16, step_tokens=64))
    prefix = (*range(10), 3, 1)
    engine.score([ScoreRequest((*prefix, n), ((1, 2),)) for n in range(5)])
    assert engine.tokens_read == 12 + 5 * 2


@pytest.mark.parametrize("rewindable", [True, False])
def test_the_labels_of_a_question_read_it_once(rewindable: bool) -> None:
    engine = fake_engine(FakeBackend(rewindable, step_tokens=64))
    engine.score([ScoreRequest((1, 2, 3, 4, 5, 6, 7), ((1,), (2, 3), (4, 5, 6)))])
    assert engine.tokens_read == 7 + 0 + 1 + 2


@pytest.mark.parametrize("rewindable", [True, False])
def test_a_chat_turn_goes_on_from_the_pages_of_the_turns_before(rewindable: bool) -> None:
    engine = fake_engine(FakeBackend(rewindable, page_size=1, step_tokens=64))
    first = engine.submit(Request((1, 2, 3, 4, 5), SamplingParams(seed=3, logit_bias={10: -1e9}), StopConfig(8))).wait()
    said = tuple(step.id for step in first.tokens[0])
    read = engine.tokens_read
    engine.submit(Request((1, 2, 3, 4, 5, *said, 7, 7), SamplingParams(seed=0), StopConfig(1))).wait()
    assert engine.tokens_read - read == 1 + 2  # the answer's last token was drawn, not computed


def test_a_cached_page_is_evicted_before_anything_that_runs_is_preempted() -> None:
    backend = FakeBackend(page_size=4, step_tokens=64)
    engine = fake_engine(backend, pages=5)
    for n in range(8):
        engine.submit(LogitsRequest((n,) * 12)).wait()
    assert engine.tokens_read == 8 * 12
    assert engine.pages_used == 0


def test_a_request_that_can_never_fit_is_refused_with_both_numbers() -> None:
    engine = fake_engine(FakeBackend(page_size=4), pages=5)
    with pytest.raises(UsageError, match=r"25 tokens, which need 70 bytes of cache; it has 50 bytes"):
        engine.submit(Request((1,) * 5, stop=StopConfig(20)))
    with pytest.raises(UsageError, match=r"60 bytes.*50 bytes"):
        engine.submit(ScoreRequest((1,) * 20, ((2, 3),)))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_request_can_be_cancelled_between_the_chunks_of_its_prompt(steps: int) -> None:
    engine = fake_engine(FakeBackend(step_tokens=4))
    handle = engine.submit(Request((1,) * 30, stop=StopConfig(5), n=2))
    for _ in range(steps):
        engine.step()
    handle.cancel()
    assert handle.done
    assert list(handle) == []
    assert not engine.step()
    assert engine.pages_used == 0


def test_speculation_draws_the_same_tokens_in_fewer_steps() -> None:
    def run(speculate: int) -> tuple[CompletionHandle, int]:
        backend = FakeBackend(step_tokens=64)
        bias = {5: 60.0, 6: 0.0}  # the text repeats itself
        request = Request((5, 5, 5, 5), SamplingParams(seed=2, logit_bias=bias), StopConfig(30), speculate=speculate)
        return fake_engine(backend).submit(request).wait(), len(backend.forwarded)

    (plain, steps), (guessed, fewer) = run(0), run(4)
    assert guessed.tokens == plain.tokens
    assert fewer < steps / 3
    assert guessed.timings.accepted_tokens == guessed.timings.drafted_tokens > 20


def test_a_step_that_fails_ends_its_requests_and_leaves_the_engine_usable() -> None:
    backend = FakeBackend(step_tokens=64)
    engine = fake_engine(backend)
    request = Request((1, 2, 3), SamplingParams(seed=0), StopConfig(5))
    backend.fail = MemoryError()
    with pytest.raises(MemoryError):
        engine.submit(request).wait()
    assert engine.pages_used == 0
    assert result(engine.submit(request).wait()) == alone(request, backend)


@pytest.mark.parametrize("rewindable", [True, False])
def test_an_interrupted_step_can_be_taken_again(rewindable: bool) -> None:
    backend = FakeBackend(rewindable, step_tokens=64)
    engine = fake_engine(backend)
    request = Request((1, 2, 3), SamplingParams(seed=0), StopConfig(5))
    handle = engine.submit(request)
    engine.step()
    engine.step()
    backend.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert result(handle.wait()) == alone(request, backend)


def test_logits_that_are_not_finite_end_their_own_request_alone() -> None:
    backend = FakeBackend(step_tokens=64, nan=9)
    engine = fake_engine(backend)
    fine, broken = Request((1, 2), SamplingParams(seed=0, logit_bias={9: -1e9})), Request((1, 9))
    handles = [engine.submit(fine), engine.submit(broken)]
    with pytest.raises(Exception, match="NaN"):
        handles[1].wait()
    assert result(handles[0].wait()) == alone(fine, FakeBackend())
    assert engine.pages_used == 0
