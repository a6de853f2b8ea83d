"""Random schedules: requests of all kinds that come, go, pause, are cancelled and run out of pages."""

from __future__ import annotations

import random
from dataclasses import replace

from nextword.base import UsageError
from nextword.engine import CompletionHandle, Engine, LogitsRequest, Request, SamplingParams, ScoreRequest, StopConfig
from nextword.engine.handles import Handle
from nextword.engine.request import AnyRequest


def random_request(rng: random.Random, beginning: list[int], number: int, vocabulary: int) -> AnyRequest:
    prompt = (*beginning[: rng.randrange(len(beginning))], *(rng.randrange(3) for _ in range(rng.randrange(1, 6))))
    kind = rng.random()
    if kind < 0.6:
        sampling = SamplingParams(seed=number, temperature=rng.choice([0, 1]), frequency_penalty=rng.choice([0, 0.5]))
        stop = StopConfig(rng.randrange(1, 20), stop=("ab",))
        return Request(
            prompt, sampling, stop, rng.choice([1, 1, 3]), rng.choice([0, 2]), None, None, rng.choice([0, 3]),
            buffer=rng.choice([None, 1, 5]),
        )  # fmt: skip
    if kind < 0.9:
        continuations = [
            tuple(rng.choices(range(vocabulary), k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))
        ]
        return ScoreRequest(prompt, tuple(continuations))
    return LogitsRequest(prompt)


def run_schedule(engine: Engine, rng: random.Random, vocabulary: int, requests: int = 14) -> list[Handle]:
    """Submit `requests` between steps, take tokens now and then, cancel some, and run until nothing is left."""
    beginning = rng.choices(range(vocabulary), k=30)
    handles: list[Handle] = []
    for number in range(requests):
        try:
            handles.append(engine.submit(random_request(rng, beginning, number, vocabulary)))
        except UsageError as error:
            if "of cache" not in str(error):  # only what could never fit may be refused
                raise
        for _ in range(rng.randrange(3)):
            engine.step()
        if handles and rng.random() < 0.2:
            rng.choice(handles).cancel()
        if rng.random() < 0.2:
            take(handles)
    while engine.step() or take(handles):
        pass
    return handles


def take(handles: list[Handle]) -> int:
    """Take all new tokens, and count them."""
    return sum(len(handle.take()) for handle in handles if isinstance(handle, CompletionHandle))


def unpaused(request: AnyRequest) -> AnyRequest:
    """A request that pauses for nobody."""
    return replace(request, buffer=None) if isinstance(request, Request) else request
