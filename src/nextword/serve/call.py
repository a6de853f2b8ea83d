"""One HTTP request under way: its place in the queue, its model, and its requests to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar
from urllib.parse import parse_qs

from ..engine import CompletionHandle, Request, Token
from ..engine.handles import Handle
from .config import ServeConfig
from .errors import ApiError
from .metrics import Metrics
from .models import Model, Models
from .status import Status

AnyHandle = TypeVar("AnyHandle", bound=Handle)
Result = TypeVar("Result")


class Service:
    """What all requests of a server share: its settings, models, metrics, and the requests under way in order."""

    def __init__(self, config: ServeConfig, models: Models) -> None:
        self.config, self.models = config, models
        self.metrics, self.status = Metrics(self), Status(self)
        self.calls: dict[Call, None] = {}
        self.draining = False
        self.calculator = ThreadPoolExecutor(1)
        self.report: Callable[[Exception], None] = lambda error: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake_pending = False

    def start(self) -> None:
        """Deliver results to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def on_step(self) -> None:
        """Tell the event loop that the engine made a step. Called by the engine's thread."""
        if self._loop is not None and not self._wake_pending:
            self._wake_pending = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop has ended
                self._loop = None

    def _wake(self) -> None:
        self._wake_pending = False
        for call in self.calls:
            call.news.set()

    @property
    def load(self) -> tuple[int, int, int]:
        """Requests running, requests waiting, and sequences running. First come, first served."""
        running = waiting = sequences = 0
        for call in self.calls:
            width = 0 if call.paused else call.width
            if width and not waiting and sequences + width <= self.config.parallel:
                running, sequences = running + 1, sequences + width
            elif width:
                waiting += 1
        return running, waiting, sequences


class Call:
    """A request under way. Whatever it holds is given back by `close`, whenever and however it ends."""

    def __init__(self, service: Service, endpoint: str, name: str = "", query: bytes = b"") -> None:
        self.service, self.endpoint = service, endpoint
        self.name = name  # the end of a path that ends in one
        self._query = query
        self.news = asyncio.Event()
        self.width = 0  # sequences; 0: it needs no place
        self.begun = time.perf_counter()
        self.generated = 0
        self.read = self.cached = 0  # tokens of its prompts, and how many of them were cached
        self._handles: list[Handle] = []
        self._model: Model | None = None
        self._closed = False
        service.calls[self] = None

    @property
    def config(self) -> ServeConfig:
        return self.service.config

    @property
    def paused(self) -> bool:
        """Whether the engine waits for the client to read."""
        return any(handle.paused for handle in self._handles)

    def query(self, name: str) -> str | None:
        """The last value of a parameter of the query string."""
        return parse_qs(self._query.decode("latin-1"), keep_blank_values=True).get(name, [None])[-1]

    async def use(self, name: str | None) -> Model:
        """The model of this request, loaded if need be."""
        self._model = await self.service.models.use(name)
        return self._model

    def admit(self, sequences: int) -> None:
        """Take a place among the running requests or in the queue. Raises ApiError if the queue is full."""
        self.width = min(sequences, self.config.parallel)
        _, waiting, _ = self.service.load
        if waiting > self.config.queue:
            self.width = 0
            self.service.metrics.rejected.inc()
            raise ApiError(429, f"{waiting - 1} requests are waiting, as many as may. Try again later")

    async def prepare(self, work: Callable[[], Result]) -> Result:
        """Run work that takes a while in a thread: tokenizing, templates, grammars."""
        return await asyncio.to_thread(work)

    async def compute(self, work: Callable[[], Result]) -> Result:
        """Run a calculation in the one thread of all of them, so that they never take more than a core."""
        return await asyncio.get_running_loop().run_in_executor(self.service.calculator, work)

    def hold(self, handle: AnyHandle) -> AnyHandle:
        """Let a request to the engine end with this call. Callable from any thread."""
        self._handles.append(handle)
        if self._closed:
            handle.abandon()
        return handle

    async def start(self, model: Model, requests: list[Request]) -> list[CompletionHandle]:
        """Hand completions to the engine. A structure may take a while to be compiled."""
        return await self.prepare(lambda: [self.hold(model.engine.submit(request)) for request in requests])

    async def done(self, handle: Handle) -> None:
        """Wait until a request to the engine is done. Raises its error."""
        while not handle.done:
            await self.news.wait()
            self.news.clear()
        if handle.error is not None:
            raise handle.error

    async def tokens(self, handles: list[CompletionHandle]) -> AsyncIterator[list[tuple[int, Token]]]:
        """The tokens of several completions as they arrive, each with the index of its sample among all of theirs."""
        *before, left = accumulate((handle.n for handle in handles), initial=0)  # counts of samples
        last: float | None = None
        while left:
            new = [
                (first + token.sample_index, token)
                for first, handle in zip(before, handles, strict=True)
                for token in handle.take()
            ]
            for handle in handles:
                if handle.error is not None:
                    raise handle.error
            if not new:
                await self.news.wait()
                self.news.clear()
                continue
            left -= sum(token.finish is not None for _, token in new)
            now = time.perf_counter()
            self.generated += len(new)
            self.service.metrics.arrived(len(new), now - (self.begun if last is None else last), first=last is None)
            last = now
            if not left:
                self.width = 0  # its place is free, however long the client reads
            yield new

    def count_prompt(self, handles: list[CompletionHandle]) -> tuple[int, int]:
        """Tokens of the prompts, and how many of them were cached; both go into the metrics."""
        prompt = sum(len(handle.prompt) for handle in handles)
        cached = sum(handle.cached_tokens for handle in handles)
        self.read, self.cached = self.read + prompt, self.cached + cached
        self.service.metrics.read(prompt, cached)
        return prompt, cached

    def close(self) -> None:
        """End everything that still runs, and leave the queue."""
        self._closed = True
        unfinished = [handle for handle in self._handles if not handle.done]
        for handle in unfinished:
            handle.abandon()
        if unfinished:
            self.service.metrics.cancelled.inc()
        if self._model is not None:
            self.service.models.release(self._model)
            self._model = None
        self.service.calls.pop(self, None)
