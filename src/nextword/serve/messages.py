"""POST /v1/messages: Anthropic's Messages API for text, over the same chat as OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from .bodies import ChatBody, Message, MessagesBody
from .chat import Work, begin, said
from .errors import ApiError
from .requests import EventStream, answer, as_api_error, fresh_id, stopping_word

if TYPE_CHECKING:
    from .call import Call

_STOP_REASONS = {"end_of_text": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}
_KINDS = {400: "invalid_request_error", 413: "request_too_large", 500: "api_error", 503: "overloaded_error"}


class MessagesError(ApiError):
    """An error in Anthropic's shape, which contains OpenAI's."""

    @property
    def content(self) -> dict[str, Any]:
        return {"type": "error", **super().content}


def as_error(error: Exception) -> ApiError:
    """Any failure as this endpoint shows it."""
    own = as_api_error(error)
    kind = _KINDS.get(own.status, own.kind)
    return MessagesError(own.status, own.message, own.param, kind, own.headers, **own.more)


async def messages(call: Call, body: MessagesBody) -> Response:
    """Answer a conversation in Anthropic's form."""
    work = await begin(call, _chat_body(body), body.max_tokens, "max_tokens")
    if body.stream:
        events = _stream(work)
        return EventStream(events, call.service.report, named=True, failure=lambda error: as_error(error).content)
    text = "".join([part async for part in said(work)])
    return answer({**_head(work), "content": [{"type": "text", "text": text}], **_ending(work), "usage": _usage(work)})


def _chat_body(body: MessagesBody) -> ChatBody:
    if body.tools:
        raise ApiError(400, "tools are not supported by /v1/messages; /v1/chat/completions takes them", "tools")
    if body.thinking and body.thinking.get("type") != "disabled":
        raise ApiError(400, "thinking is not supported here. Leave it out, or disable it", "thinking")
    if body.messages[-1].role == "assistant":
        raise ApiError(
            400, "the last message is the assistant's, which is not continued. End with the user's", "messages"
        )
    system = body.system
    if isinstance(system, list):
        system = "".join(block.text for block in system)
    turns = [Message(role=turn.role, content=turn.content) for turn in body.messages]
    return ChatBody(
        messages=[Message(role="system", content=system), *turns] if system else turns,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
        seed=body.seed,
        model=body.model,
    )


def _head(work: Work) -> dict[str, Any]:
    return {"id": fresh_id("msg"), "type": "message", "role": "assistant", "model": work.model.id}


def _ending(work: Work) -> dict[str, Any]:
    word = stopping_word(work.model, work.handles[0]) if work.ending == "stop" else None
    return {"stop_reason": _STOP_REASONS[work.ending], "stop_sequence": word}


def _usage(work: Work) -> dict[str, int]:
    """What has been read so far. Tokens of the prompt found in the cache are counted apart."""
    return {
        "input_tokens": work.prompt_tokens - work.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": work.cached_tokens,
        "output_tokens": work.call.generated,
    }


async def _stream(work: Work) -> AsyncIterator[list[Any]]:
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
    yield [
        {"type": "message_start", "message": {**_head(work), **empty, "usage": _usage(work)}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    async for text in said(work):
        yield [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}]
    yield [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": _ending(work), "usage": _usage(work)},
        {"type": "message_stop"},
    ]
