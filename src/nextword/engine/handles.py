"""Handles of requests: tokens as they are sampled, scores, logits, timings, and cancelling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from .request import AnyRequest, HiddenRequest, LogitsRequest, Request, ScoreRequest, Tokens
from .results import Completion, FinishReason, Score, Timings, Token
from .sampling_params import fresh_seed

if TYPE_CHECKING:
    from .engine import Engine
    from .sequence import Sequence, Target


class Handle:
    """A request in flight. `cached_tokens` of its `prompt_tokens` came from the prefix cache."""

    request: AnyRequest

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = Condition()
        self._sequences: dict[Sequence, None] = {}  # unfinished ones, in order
        self._begun = self._read = self._ended = 0.0
        self.prompt_tokens = self.cached_tokens = 0
        self.cancelled = False
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has finished, failed or been cancelled."""
        return not self._sequences

    @property
    def paused(self) -> bool:
        """Whether it takes no steps for now."""
        return False

    def cancel(self) -> None:
        """Stop it and free its memory. Callable at any time from any thread."""
        self.cancelled = True
        self._engine.drop(self)

    def abandon(self) -> None:
        """Like `cancel`, but takes effect before the next step, without blocking."""
        if not self.done:
            self.cancelled = True
            self._engine.drop(self, now=False)

    def wait(self) -> Self:
        """Run the engine until the request is done. Raises the request's error if it failed."""
        while not self.done:
            self._engine.advance(self)
        if self.error is not None:
            raise self.error
        return self

    # ---- called by the engine

    def started(self, sequence: Sequence, cached: int) -> None:
        self._begun = self._begun or time.perf_counter()

    def opened(self, sequences: list[Sequence]) -> None:
        self._sequences = dict.fromkeys(sequences)

    def closed(self, sequence: Sequence) -> None:
        self._sequences.pop(sequence, None)
        self._ended = time.perf_counter()
        self.notify()

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The unfinished ones."""
        return tuple(self._sequences)

    def ended_by(self, error: BaseException) -> None:
        """The engine lost its state."""
        self.error = error if isinstance(error, Exception) else None
        self.cancelled = self.error is None
        self._sequences.clear()
        self.notify()

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for_change(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)


class CompletionHandle(Handle, Iterator[Token]):
    """A completion in flight: an iterator over its tokens as they are sampled.

    `prompt` is the prompt as read, after truncation; `seed` is the seed in use. `tokens` are the tokens so far, one
    list for each of the `n` samples.
    """

    request: Request

    def __init__(self, engine: Engine, request: Request, prompt: Tokens, context: int | None) -> None:
        super().__init__(engine)
        self.request, self.prompt, self.context, self.n = request, prompt, context, request.n
        self.seed = fresh_seed() if request.sampling.seed is None else request.sampling.seed
        self.tokens: list[list[Token]] = [[] for _ in range(request.n)]
        self.drafted = self.accepted = 0
        self._new: deque[Token] = deque()

    def __next__(self) -> Token:
        while not self._new:
            if self.error is not None:
                raise self.error
            if self.done:
                raise StopIteration
            self._engine.advance(self)
        return self._take(1)[0]

    @property
    def paused(self) -> bool:
        """Whether as many tokens as `Request.buffer` holds wait to be taken."""
        buffer = self.request.buffer
        return buffer is not None and len(self._new) >= buffer

    def take(self) -> list[Token]:
        """The tokens that have arrived since the last call, without waiting."""
        return self._take(len(self._new))

    def _take(self, count: int) -> list[Token]:
        paused = self.paused
        tokens = [self._new.popleft() for _ in range(count)]
        if paused:
            self._engine.wake_worker()
        return tokens

    @property
    def finish_reasons(self) -> tuple[FinishReason | None, ...]:
        """Why each sample ended; None for an unfinished one."""
        return tuple(tokens[-1].finish if tokens else None for tokens in self.tokens)

    @property
    def timings(self) -> Timings:
        """Wall time of prefill and of decoding all samples, so far."""
        generated = sum(map(len, self.tokens))
        return Timings(
            prompt_tokens=self.prompt_tokens,
            prefill_seconds=max(0.0, self._read - self._begun),
            generated_tokens=generated,
            decode_seconds=max(0.0, self._ended - self._read) if generated else 0.0,
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    def completions(self, prompt: str, first: int = 0) -> list[Completion]:
        """The samples of a finished request, numbered from `first`; `prompt` is its text."""
        timings = self.timings
        return [
            Completion(
                prompt, self.prompt, "".join(token.text for token in tokens), tuple(tokens), _finished(tokens),
                first + sample, self.seed, timings,
            )
            for sample, tokens in enumerate(self.tokens)
        ]  # fmt: skip

    def started(self, sequence: Sequence, cached: int) -> None:
        super().started(sequence, cached)
        if not self.prompt_tokens:
            self.prompt_tokens, self.cached_tokens = len(self.prompt), cached

    def prompt_was_read(self) -> None:
        self._read = self._read or time.perf_counter()

    def drew(self, token: Token) -> None:
        self._ended = time.perf_counter()
        self.tokens[token.sample_index].append(token)
        self._new.append(token)
        self.notify()


class Stream(Iterator[Token]):
    """A completion's tokens for a loop that may exit early: the request ends when this is closed or garbage-collected.

    It has all attributes of its `CompletionHandle`.
    """

    def __init__(self, handle: CompletionHandle) -> None:
        self.handle = handle

    def __next__(self) -> Token:
        return next(self.handle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)

    def close(self) -> None:
        """Stop the completion and free its memory."""
        self.handle.cancel()

    def __del__(self) -> None:
        self.handle.abandon()


class ScoreHandle(Handle):
    """Continuations being scored."""

    request: ScoreRequest

    def __init__(self, engine: Engine, request: ScoreRequest) -> None:
        super().__init__(engine)
        self.request = request
        self._logprobs = [np.zeros(len(continuation)) for continuation in request.continuations]
        self._ranks = [np.zeros(len(continuation), np.int64) for continuation in request.continuations]
        self.top: dict[int, list[tuple[int, float]]] = {}  # by place: ids and ln p of the `top_logprobs` likeliest

    def scored(self, target: Target, logprob: float, rank: int) -> None:
        self._logprobs[target.continuation][target.place] = logprob
        self._ranks[target.continuation][target.place] = rank

    @property
    def scores(self) -> tuple[Score, ...]:
        """One for each continuation, once the request is done."""
        pairs = zip(self._logprobs, self._ranks, strict=True)
        return tuple(Score(tuple(logprobs.tolist()), tuple(ranks.tolist())) for logprobs, ranks in pairs)


class LogitsHandle(Handle):
    """A prompt being read for its next-token logits."""

    request: LogitsRequest

    def __init__(self, engine: Engine, request: LogitsRequest) -> None:
        super().__init__(engine)
        self.request = request
        self.logits: NDArray[np.float32] = np.empty(0, np.float32)  # (vocabulary,) once the request is done


class HiddenHandle(Handle):
    """A text being read for its hidden states."""

    request: HiddenRequest

    def __init__(self, engine: Engine, request: HiddenRequest) -> None:
        super().__init__(engine)
        self.request = request
        self._parts: dict[int, NDArray[np.float32]] = {}  # by the position of the first row

    def read(self, start: int, hidden: NDArray[np.float32]) -> None:
        self._parts[start] = hidden.copy()

    @property
    def hidden(self) -> NDArray[np.float32]:
        """(tokens, width), once the request is done."""
        return np.concatenate([part for _, part in sorted(self._parts.items())])


def _finished(tokens: list[Token]) -> FinishReason:
    finish = tokens[-1].finish if tokens else None
    if finish is None:
        raise ValueError("the completion has not finished")
    return finish
