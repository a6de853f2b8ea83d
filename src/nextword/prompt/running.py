"""Requests through an engine, a bounded number under way; and what they read, known before any of them runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from ..backend import Backend, Batch, Output
from ..engine import CompletionHandle, Engine, Request, Sampling, ScoreHandle, ScoreRequest, StopConfig
from ..engine.engine import MAX_SEQUENCES
from ..engine.pages import common


@overload
def answered(engine: Engine, requests: Sequence[ScoreRequest]) -> Generator[ScoreHandle, None, None]: ...
@overload
def answered(engine: Engine, requests: Sequence[Request]) -> Generator[CompletionHandle, None, None]: ...
def answered(engine: Engine, requests: Sequence[Any]) -> Generator[Any, None, None]:
    """The handle of each request as soon as it is done; only as many are under way as fill a batch.

    What has not been answered when the iterator is closed is cancelled.
    """
    under_way: dict[Any, Any] = {}  # handles and their requests, in the order of submission
    submitted = 0
    try:
        while under_way or submitted < len(requests):
            while submitted < len(requests) and _has_room(engine, [*under_way.values(), requests[submitted]]):
                under_way[engine.submit(requests[submitted])] = requests[submitted]
                submitted += 1
            engine.advance(next(iter(under_way)))
            for handle in [handle for handle in under_way if handle.done]:
                del under_way[handle]
                yield handle.wait()
    finally:
        for handle in under_way:
            handle.cancel()


def tokens_to_read(engine: Engine, requests: Sequence[ScoreRequest] | Sequence[Request]) -> int:
    """Tokens that `engine` reads for these requests, from an empty prefix cache, in the order of `answered`.

    They go through the engine's own code over a backend that computes nothing. Exact for scores. For completions it is
    because prompts in descending order find nothing that was written before them (see `descending`) and because
    `_has_room` lets no sequence be preempted; only the samples of one request that are more than the whole memory are
    read again, and a recurrent model whose memory is full may read some tokens more at the end of a prompt.
    """
    if not requests:
        return 0
    dry = engine.over(CountingBackend(engine.backend))
    unwritten: list[Any] = [_without_writing(request) for request in requests]
    for _ in answered(dry, unwritten):
        pass
    return dry.tokens_read


def descending(requests: Sequence[Request]) -> list[Request]:
    """Completions in the order in which what they read of their prompts does not depend on what they write.

    Neighbours share most. A prompt that begins with another one, and might go on as that one's completion does, comes
    before it: so no prompt finds tokens in the prefix cache that were written.
    """
    return sorted(requests, key=lambda request: request.prompt, reverse=True)


class CountingBackend:
    """Computes nothing: every token is token 0."""

    device_memory: int | None = None
    vocabulary = 1

    def __init__(self, real: Backend) -> None:
        self.context, self.step_tokens, self.rewindable = real.context, real.step_tokens, real.rewindable
        self.page_size, self.page_bytes = real.page_size, real.page_bytes

    def allocate(self, pages: int) -> None:
        pass

    def copy_page(self, source: int, target: int) -> None:
        pass

    def forward(self, batch: Batch) -> Output:
        scores = len(batch.score_rows)
        return Output(np.zeros((len(batch.logit_rows), 1), np.float32), np.zeros(scores), np.ones(scores, np.int64))


def _without_writing(request: ScoreRequest | Request) -> ScoreRequest | Request:
    if isinstance(request, ScoreRequest):
        return request
    return replace(request, sampling=Sampling(temperature=0, seed=0), stop=StopConfig(max_tokens=1))


def _has_room(engine: Engine, requests: Sequence[ScoreRequest | Request]) -> bool:
    """Whether the last of `requests` may run beside the others: it fills the batch, and memory lasts to the end."""
    if len(requests) == 1:
        return True
    if sum(map(_sequences, requests[:-1])) >= MAX_SEQUENCES:
        return False
    completions = [request for request in requests if isinstance(request, Request)]
    return not completions or _pages(engine, completions) <= engine.cache_bytes // engine.backend.page_bytes


def _sequences(request: ScoreRequest | Request) -> int:
    return request.n if isinstance(request, Request) else len(request.continuations)


def _pages(engine: Engine, requests: Sequence[Request]) -> int:
    """The most pages that sorted requests hold: those that all have in common are counted once."""
    backend, size = engine.backend, engine.backend.page_size
    shared = max(0, common(requests[0].prompt, requests[-1].prompt) - 1) // size
    pages = shared
    for request in requests:
        longest = len(request.prompt) + request.stop.max_tokens
        longest = longest if backend.context is None else min(longest, backend.context)
        own = -(-longest // size) + (not backend.rewindable)
        pages += own - shared + (request.n - 1) * (own - (len(request.prompt) - 1) // size)
    return pages
