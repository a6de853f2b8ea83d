"""The ASGI application: guard → route → body → endpoint, and every failure as one line of JSON."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..base import printable
from . import chat, completions, embeddings, info, messages, native, planning, responses, runs
from .bodies import (
    LARGEST_BODY,
    ChatBody,
    CompletionBody,
    CountTokensBody,
    DetokenizeBody,
    EmbeddingsBody,
    EvaluationsBody,
    MessagesBody,
    NativeBody,
    NextBody,
    PlanBody,
    PromptBody,
    ResponsesBody,
    TemplateBody,
    TokenizeBody,
    decode,
)  # fmt: skip
from .call import Call, Service
from .errors import ApiError, of_status
from .guard import Guard, check_body, too_large
from .pages import Pages, is_page
from .requests import as_api_error, failure_of

BODY_SECONDS = 60.0  # for a body to arrive
_IN_THREAD = 64 << 10  # bytes; longer bodies are parsed in a thread


@dataclass(frozen=True)
class Endpoint:
    """A function that answers, the type of the body it takes (None for GET), and how it shows a failure.

    `answer`: the function, or its name as MODULE.NAME, to import the module with the first request.
    `query`: parameters of the query string that it reads.
    `failure`: the last event of a stream that fails after so many events.
    """

    answer: Callable[..., Awaitable[Response]] | str
    body: Any = None
    error: Callable[[Exception], ApiError] = as_api_error
    failure: Callable[[Exception, int], dict[str, Any]] = failure_of
    query: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def function(self) -> Callable[..., Awaitable[Response]]:
        """The function that answers, imported if need be."""
        if not isinstance(self.answer, str):
            return self.answer
        module, name = self.answer.split(".")
        found: Callable[..., Awaitable[Response]] = getattr(import_module(f"{__package__}.{module}"), name)
        return found


async def openapi(call: Call, body: None) -> Response:
    """This description."""
    from .openapi import describe
    from .requests import answer

    return answer(describe(ENDPOINTS))


_HEALTH, _MODELS = Endpoint(info.health), Endpoint(info.models)
_CHAT = Endpoint(chat.chat, ChatBody)
_NATIVE = Endpoint(native.completion, NativeBody)
ENDPOINTS: dict[str, Endpoint] = {
    "/health": _HEALTH,
    "/v1/health": _HEALTH,
    "/v1/models": _MODELS,
    "/models": _MODELS,
    "/v1/models/{id}": Endpoint(info.one_model),
    "/v1/completions": Endpoint(completions.completions, CompletionBody),
    "/v1/chat/completions": _CHAT,
    "/chat/completions": _CHAT,
    "/completion": _NATIVE,
    "/completions": _NATIVE,
    "/v1/messages": Endpoint(messages.messages, MessagesBody, messages.as_error, messages.failure_of),
    "/v1/messages/count_tokens": Endpoint(messages.count_tokens, CountTokensBody, messages.as_error),
    "/v1/responses": Endpoint(responses.responses, ResponsesBody, responses.as_error, responses.failure_of),
    "/v1/embeddings": Endpoint(embeddings.embeddings, EmbeddingsBody),
    "/v1/next": Endpoint(info.next_token, NextBody),
    "/v1/plan": Endpoint(planning.plan, PlanBody),
    "/v1/plan/names": Endpoint(planning.names),
    "/v1/tasks": Endpoint("few_shot.tasks"),
    "/v1/prompt": Endpoint("few_shot.prompt", PromptBody),
    "/v1/evaluations": Endpoint("few_shot.evaluations", EvaluationsBody),
    "/v1/runs": Endpoint(runs.runs),
    "/v1/runs/{name}": Endpoint(runs.one_run, query=("after",)),
    "/tokenize": Endpoint(info.tokenize, TokenizeBody),
    "/detokenize": Endpoint(info.detokenize, DetokenizeBody),
    "/apply-template": Endpoint(info.apply_template, TemplateBody),
    "/props": Endpoint(info.props),
    "/slots": Endpoint(info.slots),
    "/metrics": Endpoint(info.metrics),
    "/openapi.json": Endpoint(openapi),
}
_NAMED = {path.partition("{")[0]: path for path in ENDPOINTS if "{" in path}  # paths that end in a name


class App:
    """The ASGI application over one `Service`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._guard, self._pages = Guard(service.config), Pages()
        service.report = self._report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.answer(self.begin(scope["path"], scope["query_string"]), Exchange(scope, receive, send))

    def begin(self, path: str, query: bytes = b"") -> Call:
        """A request for `path`, to hand to `answer`."""
        for prefix, named in _NAMED.items():
            if path.startswith(prefix) and path != prefix:
                return Call(self.service, named, path.removeprefix(prefix), query)
        endpoint = path if path in ENDPOINTS else "page" if is_page(path) else "other"
        return Call(self.service, endpoint, query=query)

    async def answer(self, call: Call, exchange: Exchange) -> None:
        """Answer a request, and close it."""
        try:
            await self._answer(exchange, call, ENDPOINTS.get(call.endpoint))
        except asyncio.CancelledError:  # the server ends
            if not exchange.started:
                await exchange.send(ApiError(503, "the server is shutting down").response)
        finally:
            call.close()
            self._count(call, exchange)

    async def _answer(self, exchange: Exchange, call: Call, endpoint: Endpoint | None) -> None:
        """Answer, while the client is there: what is under way ends when it hangs up."""
        method, path = exchange.scope["method"], exchange.scope["path"]
        try:
            exchange.cors = self._guard.check(method, path, exchange.headers)
            if method == "OPTIONS" and exchange.cors:
                await exchange.send(Response(status_code=204))
                return
            if method in ("GET", "HEAD") and is_page(path):
                page = await call.prepare(lambda: self._pages.answer(path, exchange.headers))
                if page is not None:
                    await exchange.send(page)
                    return
            endpoint = _allowed(endpoint, method, path)
            data = b""
            if endpoint.body is not None:
                if self.service.draining:
                    raise ApiError(503, "the server is shutting down")
                check_body(exchange.headers)
                data = await exchange.body()
            await exchange.while_connected(self._respond(exchange, call, endpoint, data))
        except _HungUp:
            pass
        except Exception as error:
            self._report(error)
            shown = endpoint.error(error) if endpoint else as_api_error(error)
            await exchange.send(shown.response)

    async def _respond(self, exchange: Exchange, call: Call, endpoint: Endpoint, data: bytes) -> None:
        body, kind = None, endpoint.body
        if kind is not None:
            body = decode(data, kind) if len(data) < _IN_THREAD else await call.prepare(lambda: decode(data, kind))
        answer = await call.prepare(endpoint.function) if isinstance(endpoint.answer, str) else endpoint.answer
        await exchange.send(await answer(call, body))

    def _count(self, call: Call, exchange: Exchange) -> None:
        scope, seconds = exchange.scope, time.perf_counter() - call.begun
        metrics = self.service.metrics
        metrics.requests.labels(call.endpoint, str(exchange.status)).inc()
        metrics.request_seconds.observe(seconds)
        if self.service.config.access_log:
            path = printable(scope["path"][:200])
            line = f"{scope['method']} {path} {exchange.status} {seconds:.3f} s, {call.generated} tokens"
            self.service.status.log(f"{time.strftime('%H:%M:%S')} {line}")

    def _report(self, error: Exception) -> None:
        """Log a fault of ours as one line; with NEXTWORD_DEBUG=1, where it was."""
        if as_api_error(error).status != 500:
            return
        where = ""
        if os.environ.get("NEXTWORD_DEBUG", "") not in ("", "0"):
            where = "".join(traceback.format_exception(error))
        message = printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        self.service.status.log(f"{where}nextword: a request failed: {message}")


def _allowed(endpoint: Endpoint | None, method: str, path: str) -> Endpoint:
    if endpoint is None:
        raise ApiError(404, f"unknown path {path[:200]!r}. GET /openapi.json lists every endpoint")
    if method != endpoint.method and not (method == "HEAD" and endpoint.method == "GET"):
        error = of_status(405)
        error.headers["allow"] = endpoint.method
        raise error
    return endpoint


class _HungUp(Exception):
    """The client closed the connection."""


class Exchange:
    """A request and its response on the wire."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.headers = scope, Headers(scope=scope)
        self._receive, self._send = receive, send
        self.status = 499  # as nginx logs a client that hung up
        self.started = False
        self.cors: Mapping[str, str] = {}

    async def body(self) -> bytes:
        """The whole body. Raises ApiError if it is too large or takes too long."""
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise _HungUp
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > LARGEST_BODY:
                        raise too_large()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
        return b"".join(parts)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`. Raises _HungUp, with `work` cancelled, if the client closes the connection."""
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _HungUp
            working.result()
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, response: Response) -> None:
        await response(self.scope, self._receive, self.send_message)

    async def send_message(self, message: Message) -> None:
        """Send one message of a response."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            extra = [(name.encode(), value.encode()) for name, value in self.cors.items()]
            message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)
