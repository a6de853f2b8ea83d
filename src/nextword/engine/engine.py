"""The engine: requests join and leave at any step; each step runs one batch of everything in flight.

    submit(request) → handle;   step(): schedule → forward → sample or score → tokens on the handles

Everything that belongs to a request is on its handle. Its result does not depend on what else is running.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend, Batch, Output
from ..base import RunError, UsageError
from ..base.units import format_bytes
from ..text import Tokenizer
from .handles import CompletionHandle, Handle, HiddenHandle, LogitsHandle, ScoreHandle
from .pages import PagePool
from .request import AnyRequest, HiddenRequest, LogitsRequest, Request, ScoreRequest
from .results import Score
from .sampler import Draw, Floats, sample
from .scheduler import Chunk, Scheduler
from .sequence import Prompt, Read, Sample, Scored, Sequence
from .structure import Grammars
from .worker import stepping, working

MAX_SEQUENCES = 64  # running at a time
CACHE_BYTES = 2**30  # keys and values, unless one full context needs more

AnyHandle = TypeVar("AnyHandle", bound=Handle)


class PromptTooLong(UsageError):
    """A prompt that leaves no room for an answer. `fact` is the message without a fix, which depends on the caller."""

    def __init__(self, tokens: int, context: int, ways_out: str = "Shorten it") -> None:
        self.fact = (
            f"the prompt has {tokens} tokens; the model's context holds {context}, at least one of them for the answer"
        )
        super().__init__(f"{self.fact}. {ways_out}")


@dataclass(frozen=True)
class Drawing:
    """A sample whose next tokens are sampled from logit rows starting at `row`, plus one row per draft."""

    chunk: Chunk
    sample: Sample
    row: int


class Engine:
    """Runs requests through one model.

    `cache_bytes` limits the memory of keys, values and states of all sequences, including the prefix cache.
    Default: 1 GiB, or more if one sequence of the full context needs more, and never more than half of the free
    memory. `step_tokens` limits a step: a smaller one makes decoding wait less while prompts are being read.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        cache_bytes: int | None = None,
        step_tokens: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        self.backend, self.tokenizer = backend, tokenizer
        self.cache_bytes = _cache_bytes(backend, cache_bytes)
        self.tokens_read = 0  # of prompts and scored texts, not counting prefix cache hits
        self.wake: Callable[[], None] | None = None  # set by a worker; called when there is work
        self._limits = (step_tokens or backend.step_tokens, max_sequences)
        self._new_scheduler()
        self._grammars = Grammars(tokenizer, backend.vocabulary)
        self._allocated = False
        self._submitted: deque[Sequence] = deque()  # by any thread, for the next step
        self._cancelled: deque[Handle] = deque()

    # ---- public

    @overload
    def submit(self, request: Request) -> CompletionHandle: ...
    @overload
    def submit(self, request: ScoreRequest) -> ScoreHandle: ...
    @overload
    def submit(self, request: LogitsRequest) -> LogitsHandle: ...
    @overload
    def submit(self, request: HiddenRequest) -> HiddenHandle: ...
    def submit(self, request: AnyRequest) -> Handle:
        """Queue a request; it joins the batch at the next step. Callable from any thread.

        Raises UsageError for a request that can never run: an empty prompt, or one beyond the context or the cache.
        """
        sequences = self._sequences(request)
        handle: Handle = sequences[0].handle
        handle.opened(sequences)
        sequences[0].followers = sequences[1:]
        self._submitted.append(sequences[0])
        self.wake_worker()
        return handle

    def step(self) -> bool:
        """Run one step; False if there is nothing to do. Waiting on a handle runs steps too."""
        with stepping():
            with self._critical_section():
                self._collect()
                chunks = self._scheduler.schedule()
            if chunks and (output := self._forward(chunks)) is not None:
                with self._critical_section():
                    self._apply(chunks, output)
            return bool(chunks)

    def advance(self, handle: Handle) -> None:
        """Make progress on a request: run a step, or wait for the worker to run one."""
        if working():
            handle.wait_for_change(1.0)
        elif not self.step() and not handle.done:
            raise AssertionError("a request waits and nothing runs")

    def drop(self, handle: Handle, now: bool = True) -> None:
        """End the sequences of a cancelled request: `now`, or before the next step if a worker runs it."""
        self._cancelled.append(handle)
        self.wake_worker()
        if now and not working():
            with stepping():
                self._collect()

    def complete(self, requests: Iterable[Request]) -> list[CompletionHandle]:
        """Run several requests to completion."""
        return self._together([self.submit(request) for request in requests])

    def score(self, requests: Iterable[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Log-probabilities of the continuations of each request."""
        return [handle.scores for handle in self._together([self.submit(request) for request in requests])]

    def logits(self, prompt: Tokens[int]) -> Floats:
        """Raw logits of the token after `prompt`, float64 (vocabulary,)."""
        return self.submit(LogitsRequest(tuple(prompt))).wait().logits.astype(np.float64)

    def hidden(self, text: Tokens[int]) -> NDArray[np.float32]:
        """What the model's head reads after every token of `text`, (tokens, width)."""
        return self.submit(HiddenRequest(tuple(text))).wait().hidden

    def over(self, backend: Backend) -> Engine:
        """An engine with the same memory and limits over another backend; its prefix cache is empty."""
        return Engine(backend, self.tokenizer, self.cache_bytes, *self._limits)

    def clear_cache(self) -> None:
        """Empty the prefix cache. Raises UsageError while requests in flight use it."""
        with stepping():
            self._collect()
            if self.sequences_under_way:
                raise UsageError("the model is completing another request. Finish it or cancel it first")
            self._new_scheduler()

    @property
    def pages_used(self) -> int:
        """Pages held by requests in flight, not counting the prefix cache."""
        return self._pool.used

    @property
    def sequences_under_way(self) -> int:
        """Running and waiting sequences."""
        return len(self._scheduler.running) + len(self._scheduler.waiting)

    def _together(self, handles: list[AnyHandle]) -> list[AnyHandle]:
        try:
            return [handle.wait() for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def _new_scheduler(self) -> None:
        self._pool = PagePool(
            self.cache_bytes // self.backend.page_bytes, self.backend.page_size, self.backend.rewindable
        )
        self._scheduler = Scheduler(self._pool, self.backend.copy_page, *self._limits)

    # ---- requests as sequences

    def _sequences(self, request: AnyRequest) -> list[Any]:
        """A request's sequences: the first runs alone until the others can share its prefix."""
        if isinstance(request, ScoreRequest):
            scores = ScoreHandle(self, self._checked(request))
            longer = [n for n, tokens in enumerate(request.continuations) if n == 0 or len(tokens) > 1]
            return [Scored(scores, number) for number in longer]
        prompt = self._fit(request)
        if isinstance(request, LogitsRequest):
            return [Prompt(LogitsHandle(self, request), prompt)]
        if isinstance(request, HiddenRequest):
            return [Read(HiddenHandle(self, request), prompt)]
        for token in request.sampling.logit_bias:
            if token >= self.backend.vocabulary:
                last = self.backend.vocabulary - 1
                raise UsageError(f"logit_bias names token {token}; the vocabulary has ids 0 to {last}")
        matchers = self._grammars.matchers(request.structure, request.n)
        handle = CompletionHandle(self, request, prompt, self.backend.context)
        return [Sample(handle, number, self.tokenizer, matcher) for number, matcher in enumerate(matchers)]

    def _fit(self, request: Request | LogitsRequest | HiddenRequest) -> tuple[int, ...]:
        """The prompt as it will be read: refused if it leaves no room for a token, or truncated on request."""
        prompt, context = tuple(request.prompt), self.backend.context
        if not prompt:
            raise UsageError("the prompt is empty: there is nothing to continue. Give at least one token")
        if not isinstance(request, Request):
            if context is not None and len(prompt) > context:
                raise PromptTooLong(len(prompt), context)
            self._check_memory(len(prompt), "the prompt", "Shorten it")
            return prompt
        if context is not None and len(prompt) >= context:
            if request.truncate != "left":
                raise PromptTooLong(len(prompt), context, "Shorten it, or cut its beginning with truncate='left'")
            prompt = prompt[-max(context - request.stop.max_tokens, context // 2) :]
        most = len(prompt) + request.stop.max_tokens
        most = most if context is None else min(context, most)
        self._check_memory(most, "the prompt and its completion", "Shorten the prompt, or ask for fewer tokens")
        return prompt

    def _checked(self, request: ScoreRequest) -> ScoreRequest:
        context, longest = self.backend.context, max(map(len, request.continuations))
        if not request.context or not all(request.continuations):
            raise UsageError("a text to score is empty: it takes a context and continuations of at least one token")
        size = len(request.context) + longest - 1
        if context is not None and size > context:
            raise UsageError(f"the text has {size + 1} tokens; the model's context holds {context}. Shorten it")
        self._check_memory(size, "the text", "Shorten it")
        return request

    def _check_memory(self, tokens: int, what: str, way_out: str) -> None:
        size, snapshots = self._pool.size, 0 if self._pool.rewindable else 2
        needed = -(-tokens // size) + snapshots
        if needed > self._pool.count:
            need, have = format_bytes(needed * self.backend.page_bytes), format_bytes(self.cache_bytes)
            raise UsageError(
                f"{what} may have {tokens} tokens, which need {need} of cache; it has {have}. {way_out}, or raise"
                " cache_bytes"
            )

    # ---- one step

    def _collect(self) -> None:
        """Process what was submitted and cancelled since the last step."""
        if self._submitted:
            self._allocate()
        while self._submitted:
            self._scheduler.add(self._submitted.popleft())
        while self._cancelled:
            self._end_all(self._cancelled.popleft())

    def _allocate(self) -> None:
        if not self._allocated:
            self.backend.allocate(self._pool.count)
            self._allocated = True

    def wake_worker(self) -> None:
        """Let a worker, if there is one, look for work."""
        if self.wake is not None:
            self.wake()

    @contextmanager
    def _critical_section(self) -> Iterator[None]:
        """A critical section: an interrupt or error inside it ends all requests."""
        try:
            yield
        except BaseException as error:
            sequences = [*self._scheduler.running, *self._scheduler.waiting]
            self._new_scheduler()
            for handle in dict.fromkeys(sequence.handle for sequence in sequences):
                handle.ended_by(error)
            raise

    def _forward(self, chunks: list[Chunk]) -> Output | None:
        """Run the model. A failure ends the requests of this step; after an interrupt the step can be repeated."""
        try:
            return self.backend.forward(_batch(chunks))
        except BaseException as error:
            with self._critical_section():
                for chunk in reversed(chunks):  # earlier results remain unless overwritten
                    self._scheduler.preempt(chunk.sequence, keep=self._pool.rewindable)
                if isinstance(error, Exception):
                    for handle in dict.fromkeys(chunk.sequence.handle for chunk in chunks):
                        handle.error = error
                        self._end_all(handle)
            if not isinstance(error, Exception):
                raise
            return None

    def _apply(self, chunks: list[Chunk], output: Output) -> None:
        """Hand each sequence its results."""
        row = score = read = 0
        drawing: list[Drawing] = []
        for chunk in chunks:
            sequence = chunk.sequence
            self.tokens_read += 0 if sequence.decoding else len(chunk.tokens)
            rows = len(sequence.logit_positions(chunk.start, chunk.end))
            scores = len(sequence.targets(chunk.start, chunk.end))
            hidden = len(sequence.hidden_positions(chunk.start, chunk.end))
            if isinstance(sequence, Sample) and rows:
                drawing.append(Drawing(chunk, sequence, row))
            else:
                spans = (slice(row, row + rows), slice(score, score + scores), slice(read, read + hidden))
                sequence.receive(chunk.start, output.part(*spans))
                self._scheduler.advance(chunk, len(chunk.tokens))
                if sequence.computed == len(sequence.tokens):
                    self._end(sequence)
            row, score, read = row + rows, score + scores, read + hidden
        self._draw(drawing, output.logits)

    def _draw(self, drawing: list[Drawing], logits: NDArray[np.float32]) -> None:
        """Sample from each first row, then along the drafts as long as they match."""
        for entry in drawing:
            entry.sample.handle.prompt_was_read()
        place = 0
        while drawing:
            at = [entry.row + place for entry in drawing]
            draws = sample(logits, [entry.sample.row() for entry in drawing], at)
            drawing = [
                entry
                for entry, draw in zip(drawing, draws, strict=True)
                if not entry.sample.handle.done and self._take(entry, place, draw)
            ]
            place += 1

    def _take(self, entry: Drawing, place: int, draw: Draw | RunError) -> bool:
        """Give a sample the token from its row `place`; return whether its draft matched and the next row counts."""
        chunk, handle = entry.chunk, entry.sample.handle
        draw = entry.sample.fault or draw
        if isinstance(draw, RunError):
            handle.error = draw
            self._end_all(handle)
            return False
        token = entry.sample.accept(draw)
        computed = len(chunk.tokens) - chunk.drafted + place
        if place < chunk.drafted and chunk.tokens[computed] == draw.token and token.finish is None:
            handle.drew(token)
            return True
        handle.drafted, handle.accepted = handle.drafted + chunk.drafted, handle.accepted + place
        self._scheduler.advance(chunk, computed)
        self._follow(entry.sample)
        if token.finish is not None:
            self._end(entry.sample)
        handle.drew(token)
        return False

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        self._follow(sequence)
        sequence.handle.closed(sequence)

    def _follow(self, sequence: Sequence) -> None:
        """Start the sequences that waited for this one's prefix."""
        self._scheduler.add_first(sequence.followers)
        sequence.followers = []

    def _end_all(self, handle: Handle) -> None:
        """End a request that was cancelled or failed."""
        for sequence in handle.sequences:
            self._scheduler.remove(sequence)
            handle.closed(sequence)


def _batch(chunks: list[Chunk]) -> Batch:
    """The chunks of a step in the form a backend takes."""
    lengths = [len(chunk.tokens) for chunk in chunks]
    offsets = [end - chunk.end for chunk, end in zip(chunks, accumulate(lengths), strict=True)]  # row of position 0
    spans = [(chunk.sequence, offset, chunk.start, chunk.end) for chunk, offset in zip(chunks, offsets, strict=True)]
    targets = [(offset, target) for sequence, offset, *span in spans for target in sequence.targets(*span)]
    tables = np.full((len(chunks), max(len(chunk.sequence.pages) for chunk in chunks)), -1, np.int32)
    for row, chunk in enumerate(chunks):
        tables[row, : len(chunk.sequence.pages)] = [page.number for page in chunk.sequence.pages]
    return Batch(
        tokens=np.array([token for chunk in chunks for token in chunk.tokens], np.int64),
        positions=np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks]),
        sequences=np.repeat(np.arange(len(chunks)), lengths),
        page_tables=tables,
        logit_rows=np.array(
            [o + at for sequence, o, *span in spans for at in sequence.logit_positions(*span)], np.int64
        ),
        score_rows=np.array([offset + target.position for offset, target in targets], np.int64),
        targets=np.array([target.token for _, target in targets], np.int64),
        hidden_rows=np.array(
            [o + at for sequence, o, *span in spans for at in sequence.hidden_positions(*span)], np.int64
        ),
    )


def _cache_bytes(backend: Backend, wanted: int | None) -> int:
    """Bytes for pages: as requested, or the default described in `Engine`."""
    free = backend.device_memory
    if wanted is None:
        context = backend.context or 0
        wanted = max(CACHE_BYTES, -(-context // backend.page_size) * backend.page_bytes)
        wanted = wanted if free is None else min(wanted, free // 2)
    elif free is not None and wanted > free:
        raise UsageError(f"cache_bytes is {format_bytes(wanted)}, but only {format_bytes(free)} of memory are free")
    if wanted < backend.page_bytes:
        raise RunError(f"the cache needs at least {format_bytes(backend.page_bytes)}, one page. Free some memory first")
    return wanted
