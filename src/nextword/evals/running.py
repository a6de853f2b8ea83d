"""Runs a bounded number of engine requests at a time, and predicts the tokens they read."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend, Batch, Output
from ..engine import CompletionHandle, Engine, Request, SamplingParams, ScoreHandle, ScoreRequest, StopConfig
from ..engine.engine import MAX_SEQUENCES
from ..engine.handles import Handle
from ..engine.pages import common_prefix


@overload
def answered(engine: Engine, requests: Sequence[ScoreRequest]) -> Generator[ScoreHandle, None, None]: ...
@overload
def answered(engine: Engine, requests: Sequence[Request]) -> Generator[CompletionHandle, None, None]: ...
def answered(engine: Engine, requests: Sequence[Any]) -> Generator[Any, None, None]:
    """Yield the handle of each request as soon as it is done; only as many run at a time as fill a batch.

    Closing the iterator cancels the remaining requests.
    """
    under_way = _UnderWay(engine)
    submitted = 0
    try:
        while under_way.requests or submitted < len(requests):
            while submitted < len(requests) and under_way.has_room_for(requests[submitted]):
                under_way.submit(requests[submitted])
                submitted += 1
            engine.advance(next(iter(under_way.requests)))
            for handle in [handle for handle in under_way.requests if handle.done]:
                under_way.remove(handle)
                yield handle.wait()
    finally:
        for handle in under_way.requests:
            handle.cancel()


def tokens_to_read(engine: Engine, requests: Sequence[ScoreRequest] | Sequence[Request]) -> int:
    """The tokens that `engine` will read for these requests, with an empty prefix cache, in the order of `answered`.

    They run through the engine's own code with a backend that computes nothing. Exact for scores. Also exact for
    completions, because prompts in descending order find no generated tokens in the cache (see `descending`) and
    `_UnderWay` prevents preemption; but a recurrent model whose memory is full may read a few more tokens at the end of
    a prompt.
    """
    if not requests:
        return 0
    dry = engine.over(CountingBackend(engine.backend))
    unwritten: list[Any] = [_without_writing(request) for request in requests]
    for _ in answered(dry, unwritten):
        pass
    return dry.tokens_read


def descending(requests: Sequence[Request]) -> list[Request]:
    """Completions in an order where the prompt tokens read do not depend on what is generated.

    Neighbours share the longest prefixes. A prompt that extends another one, perhaps like its completion, comes before
    it, so that no prompt finds generated tokens in the prefix cache.
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

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        return np.zeros((len(batch.tokens), 1), np.float32)


def _without_writing(request: ScoreRequest | Request) -> ScoreRequest | Request:
    if isinstance(request, ScoreRequest):
        return request
    return replace(
        request, sampling=SamplingParams(temperature=0, seed=0), stop=StopConfig(max_tokens=1), structure=None
    )


class _UnderWay:
    """Running requests: as many as fill the batch, and completions only if memory lasts to their ends."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._size = engine, engine.backend.page_size
        self.requests: dict[Handle, ScoreRequest | Request] = {}  # in the order of submission
        self._sequences = self._pages = 0

    def submit(self, request: ScoreRequest | Request) -> None:
        self.requests[self._engine.submit(request)] = request
        self._count(request, 1)

    def remove(self, handle: Handle) -> None:
        self._count(self.requests.pop(handle), -1)

    def has_room_for(self, request: ScoreRequest | Request) -> bool:
        if not self.requests:
            return True
        if self._sequences >= MAX_SEQUENCES:
            return False
        if isinstance(request, ScoreRequest):
            return True
        oldest = next(iter(self.requests.values()))
        assert isinstance(oldest, Request)
        shared = max(0, common_prefix(oldest.prompt, request.prompt) - 1) // self._size  # by all, as they are sorted
        pages = self._pages + self._most_pages(request) - shared * len(self.requests)
        return pages <= self._engine.cache_bytes // self._engine.backend.page_bytes

    def _count(self, request: ScoreRequest | Request, sign: int) -> None:
        if isinstance(request, ScoreRequest):
            self._sequences += sign * len(request.continuations)
        else:
            self._sequences += sign
            self._pages += sign * self._most_pages(request)

    def _most_pages(self, request: Request) -> int:
        """Pages of a completion of one sample at its maximum length."""
        backend, longest = self._engine.backend, len(request.prompt) + request.stop.max_tokens
        longest = longest if backend.context is None else min(longest, backend.context)
        return -(-longest // self._size) + (not backend.rewindable)  # a state cached for others takes one more
