"""The fields of a body → requests to the engine, and what all answers share."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..base import NextwordError, UsageError
from ..engine import CompletionHandle, Request, SamplingParams, StopConfig, Structure
from .bodies import OpenAI, Sampling
from .errors import ApiError, of_usage

if TYPE_CHECKING:
    from .call import Call
    from .models import Model
    from .prompts import Prompt

BUFFER = 64  # tokens of a sample that a stream is ahead of its client's connection, before it pauses
PING = b": ping\n\n"
PING_SECONDS = 15.0  # without an event, after which a stream sends a comment, so that no proxy ends it
FINISH = {"stop": "stop", "end_of_text": "stop", "length": "length", "context": "length"}
_NAMES = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_FIELDS = (*_NAMES, "top_k", "seed", "stop", "logit_bias", "max_tokens", "n", "prompt")


def sampling_of(call: Call, model: Model, body: Sampling, bias: Mapping[int, float] | None) -> SamplingParams:
    """The sampling parameters of a body; fields not given are neutral, or the server's."""
    config = call.config
    settings: dict[str, Any] = {name: value for name in _NAMES if (value := getattr(body, name)) is not None}
    settings.setdefault("temperature", config.temperature)
    seed = config.seed if body.seed is None else None if body.seed == -1 else body.seed % 2**64
    biases = dict(bias or {})
    if body.ignore_eos:
        biases |= dict.fromkeys(model.tokenizer.stop_ids, float("-inf"))
    return SamplingParams(top_k=max(0, body.top_k or 0), seed=seed, logit_bias=biases, **settings)


def most_tokens(call: Call, model: Model, wanted: int | None, default: int | None, param: str) -> int:
    """How many tokens a choice may have. Raises ApiError for more than the server allows."""
    limit = min(model.context, call.config.max_tokens or model.context)
    if wanted is not None and wanted > limit:
        raise ApiError(400, f"{param} is {wanted}; at most {limit} are allowed here", param)
    return limit if wanted is None and default is None else min(limit, default if wanted is None else wanted)  # type: ignore[type-var, return-value]


def requests_of(
    call: Call, model: Model, body: Sampling, prompts: list[Prompt], *,
    max_tokens: int, n: int = 1, bias: Mapping[int, float] | None = None, top_logprobs: int = 0,
    structure: Structure | None = None, param: str = "prompt",
) -> list[Request]:  # fmt: skip
    """A request to the engine for each prompt, whose answer ends where the context does."""
    from .prompts import too_long

    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        sampling = sampling_of(call, model, body, bias)
        requests = []
        for prompt in prompts:
            room = model.context - len(prompt.ids)
            if room < 1:
                raise too_long(model, len(prompt.ids), param)
            limits = StopConfig(min(max_tokens, room), stop)
            extras: dict[str, Any] = {
                "structure": structure,
                "kept_mass": bool(getattr(body, "nextword", None)),
                "buffer": BUFFER * n if body.stream else None,
            }
            requests.append(Request(prompt.ids, sampling, limits, n=n, top_logprobs=top_logprobs, **extras))
    except UsageError as error:
        raise of_usage(error, _FIELDS) from None
    return requests


def check_stream_options(body: OpenAI) -> bool:
    """Whether usage is to be sent at the end of a stream."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for streams; give stream: true with it", "stream_options")
    return bool(body.stream_options and body.stream_options.include_usage)


def stopping_word(model: Model, handle: CompletionHandle) -> str:
    """The stop string that ended the text of a completion's first sample: the one that follows it."""
    text = model.tokenizer.decode([token.id for token in handle.tokens[0]], continues=True)
    found = [(place, stop) for stop in handle.request.stop.stop if (place := text.find(stop)) >= 0]
    return min(found)[1] if found else ""


def fresh_id(prefix: str) -> str:
    return f"{prefix}-{os.urandom(12).hex()}"


def now() -> int:
    return int(time.time())


def answer(content: Any) -> Response:
    """A whole answer as JSON."""
    return Response(msgspec.json.encode(content), media_type="application/json")


def as_api_error(error: Exception) -> ApiError:
    """Any failure as the API shows it: what a client sent is 400, a fault of ours 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return of_usage(error, _FIELDS)
    if isinstance(error, NextwordError):
        return ApiError(500, str(error))
    if isinstance(error, MemoryError):
        return ApiError(500, "out of memory. Ask for less at once")
    return ApiError(500, f"internal error: {type(error).__name__}")


def failure_of(error: Exception, number: int = 0) -> dict[str, Any]:
    """A failure as the last event of a stream, whose first event has the number 0."""
    return as_api_error(error).content


class EventStream(Response):
    """Server-sent events: each item of `events` is sent as one `data:` line as soon as it is there.

    `done`: whether [DONE] ends the stream. `named`: whether the `type` of an item is also the event's name.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[list[Any]], report: Callable[[Exception], None], *,
        done: bool = False, named: bool = False, failure: Callable[[Exception], dict[str, Any]] = failure_of,
    ) -> None:  # fmt: skip
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events, self._report, self._failure = events, report, failure
        self._end, self._named = b"data: [DONE]\n\n" if done else b"", named
        self._sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        end = self._end
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            async for events in self._events:
                self._sent = time.monotonic()
                data = b"".join(event(content, self._named) for content in events)
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            self._report(error)
            end = event(self._failure(error), self._named)
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _ping(self, send: Send) -> None:
        """Send a comment whenever there has been no event for a while."""
        while True:
            await asyncio.sleep(PING_SECONDS - (time.monotonic() - self._sent))
            if time.monotonic() - self._sent >= PING_SECONDS:
                self._sent = time.monotonic()
                await send({"type": "http.response.body", "body": PING, "more_body": True})


def event(content: Any, named: bool) -> bytes:
    """An event of a stream. `named`: the `type` of its content is also the event's name."""
    name = f"event: {content['type']}\n".encode() if named else b""
    return name + b"data: " + msgspec.json.encode(content) + b"\n\n"
