"""The worker: one thread a process steps the engines, and handles may be waited for anywhere."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fake_backend import FakeBackend
from test_schedules import fake_engine

from nextword.engine import Request, SamplingParams, StopConfig, Worker


def requests(count: int) -> list[Request]:
    return [Request((n, 1, n % 3), SamplingParams(seed=n, logit_bias={10: -1e9}), StopConfig(30)) for n in range(count)]


def test_threads_that_wait_for_a_worker_get_what_they_get_without_one() -> None:
    alone = [fake_engine(FakeBackend()).submit(request).wait().tokens for request in requests(9)]
    first, second = fake_engine(FakeBackend()), fake_engine(FakeBackend(rewindable=True, page_size=8))
    with Worker(first, second), ThreadPoolExecutor(9) as pool:
        engines = [first, second]

        def run(numbered: tuple[int, Request]) -> object:
            handle = engines[numbered[0] % 2].submit(numbered[1])
            assert [step.id for step in handle] == [step.id for step in handle.tokens[0]]
            return handle.tokens

        assert list(pool.map(run, enumerate(requests(9)))) == alone
    assert first.pages_used == second.pages_used == 0


def test_no_other_thread_steps_an_engine_while_a_worker_runs() -> None:
    engine = fake_engine(FakeBackend())
    with Worker(engine), pytest.raises(AssertionError, match="a worker steps the engines of this process"):
        engine.step()


def test_there_is_one_worker_a_process() -> None:
    with Worker(fake_engine(FakeBackend())), pytest.raises(AssertionError, match="already running"):
        Worker(fake_engine(FakeBackend())).__enter__()


def test_a_request_is_cancelled_while_a_worker_runs_it() -> None:
    engine = fake_engine(FakeBackend())
    with Worker(engine):
        handle = engine.submit(Request((1,), SamplingParams(seed=0, logit_bias={10: -1e9}), StopConfig(900)))
        next(handle)
        handle.cancel()
        rest = list(handle)  # ends, with what was drawn meanwhile
        assert handle.done
    assert len(rest) < 899
    assert engine.pages_used == 0


def test_a_worker_goes_on_with_a_request_whose_tokens_are_taken() -> None:
    [request] = requests(1)
    engine = fake_engine(FakeBackend())
    with Worker(engine):
        handle, taken = engine.submit(replace(request, buffer=4)), []
        while not handle.done:
            handle.wait_for_change(0.01)
            assert len(handle.tokens[0]) <= len(taken) + 4
            taken += handle.take()
        assert taken + handle.take() == engine.submit(request).wait().tokens[0]
        assert list(engine.submit(replace(request, buffer=1))) == handle.tokens[0]


def test_a_worker_that_ends_leaves_no_thread_and_the_engine_to_its_caller() -> None:
    before = threading.active_count()
    engine = fake_engine(FakeBackend())
    [request] = requests(1)
    with Worker(engine):
        with_worker = engine.submit(request).wait().tokens
    assert threading.active_count() == before
    assert engine.submit(request).wait().tokens == with_worker


def test_a_failing_step_reaches_the_thread_that_waits_and_the_worker_goes_on() -> None:
    backend = FakeBackend()
    engine = fake_engine(backend)
    [request] = requests(1)
    with Worker(engine):
        backend.fail = MemoryError()
        with pytest.raises(MemoryError):
            engine.submit(request).wait()
        assert len(engine.submit(request).wait().tokens[0]) == 30


def test_a_stop_just_before_the_worker_looks_for_work_is_not_lost() -> None:
    worker = Worker()

    class Late(threading.Event):
        def clear(self) -> None:
            worker._stopped = True
            super().clear()

    worker._wake = Late()
    worker._thread.start()
    worker._thread.join(10)
    assert not worker._thread.is_alive()


def test_engines_come_and_go_while_a_worker_runs() -> None:
    alone = [fake_engine(FakeBackend()).submit(request).wait().tokens for request in requests(2)]
    steps = []
    with Worker(on_step=lambda: steps.append(threading.current_thread().name)) as worker:
        for request, tokens in zip(requests(2), alone, strict=True):
            engine = fake_engine(FakeBackend())
            worker.add(engine)
            assert engine.submit(request).wait().tokens == tokens
            worker.remove(engine)
    assert set(steps) == {"nextword-engine"}
