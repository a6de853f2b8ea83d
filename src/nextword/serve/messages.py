"""POST /v1/messages: Anthropic's Messages API for text and tools, over the same chat as OpenAI's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from .bodies import (
    ChatBody,
    CountTokensBody,
    Message,
    MessagesBody,
    MessagesToolChoice,
    ToolResult,
    ToolUse,
    Turn,
    converted,
)  # fmt: skip
from .chat import Work, begin, prompt_of, said
from .errors import ApiError
from .requests import EventStream, answer, as_api_error, fresh_id, stopping_word
from .tools import Tools, call_of

if TYPE_CHECKING:
    from .call import Call

_STOP_REASONS = {
    "end_of_text": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens",
    "tool_calls": "tool_use",
}  # fmt: skip
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


def failure_of(error: Exception, number: int = 0) -> dict[str, Any]:
    """A failure as the last event of a stream."""
    return as_error(error).content


async def messages(call: Call, body: MessagesBody) -> Response:
    """Answer a conversation in Anthropic's form."""
    chat = _chat_body(body)
    chat.temperature, chat.top_p, chat.top_k, chat.seed = body.temperature, body.top_p, body.top_k, body.seed
    chat.stop, chat.stream = body.stop_sequences, body.stream
    reply = Reply(await begin(call, chat, body.max_tokens, "max_tokens"))
    if body.stream:
        events = reply.stream()
        return EventStream(events, call.service.report, named=True, failure=failure_of)
    async for _ in reply.stream():
        pass
    return answer(reply.whole())


async def count_tokens(call: Call, body: CountTokensBody) -> Response:
    """The tokens of a conversation."""
    chat, model = _chat_body(body), await call.use(body.model)
    prompt = await call.prepare(lambda: prompt_of(model, chat, Tools.of(model, chat)))
    return answer({"input_tokens": len(prompt.ids)})


# ---- the conversation in chat's form


def _chat_body(body: CountTokensBody) -> ChatBody:
    if body.thinking and body.thinking.get("type") != "disabled":
        raise ApiError(400, "thinking is not supported here. Leave it out, or disable it", "thinking")
    if body.messages[-1].role == "assistant":
        raise ApiError(
            400, "the last message is the assistant's, which is not continued. End with the user's", "messages"
        )
    system = body.system
    if isinstance(system, list):
        system = "".join(block.text for block in system)
    turns = [message for turn in body.messages for message in _turn(turn)]
    tools = [
        {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema or {}}
        for tool in body.tools or []
    ]
    return ChatBody(
        messages=[Message(role="system", content=system), *turns] if system else turns,
        tools=[{"type": "function", "function": tool} for tool in tools],
        tool_choice=_tool_choice(body.tool_choice),
        model=body.model,
    )


def _tool_choice(choice: MessagesToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _turn(turn: Turn) -> list[Message]:
    """A turn as messages of chat: results of tools are messages of their own."""
    if isinstance(turn.content, str):
        return [Message(role=turn.role, content=turn.content)]
    results: list[Message] = []
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in turn.content:
        if block.get("type") == "tool_result":
            result = converted(block, ToolResult, "messages")
            results.append(Message(role="tool", content=result.content, tool_call_id=result.tool_use_id))
        elif block.get("type") == "tool_use":
            use = converted(block, ToolUse, "messages")
            calls.append(call_of(use.id, use.name, use.input))
        else:
            content.append(block)
    if results and not content:
        return results
    return [*results, Message(role=turn.role, content=content, tool_calls=calls or None)]


# ---- the answer


class Reply:
    """A message, and the events that build it up."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._head = {"id": fresh_id("msg"), "type": "message", "role": "assistant", "model": work.model.id}
        self._blocks: list[dict[str, Any]] = []

    def whole(self) -> dict[str, Any]:
        """The message, once the stream is over."""
        return {**self._head, "content": self._blocks, **self._ending(), "usage": self._usage()}

    async def stream(self) -> AsyncIterator[list[Any]]:
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        yield [{"type": "message_start", "message": {**self._head, **empty, "usage": self._usage()}}]
        async for text, calls in said(self._work):
            yield self._text(text) + [event for call in calls for event in self._call(call)]
        yield [
            *([] if self._blocks else self._begin({"type": "text", "text": ""})),
            *self._end_text(),
            {"type": "message_delta", "delta": self._ending(), "usage": self._usage()},
            {"type": "message_stop"},
        ]

    def _text(self, text: str) -> list[Any]:
        """More text, in a block of its own behind a call."""
        if not text:
            return []
        new = [] if self._in_text else self._begin({"type": "text", "text": ""})
        self._blocks[-1]["text"] += text
        return [*new, self._delta({"type": "text_delta", "text": text})]

    def _call(self, call: dict[str, Any]) -> list[Any]:
        """A call of a tool, which ends the text before it."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        ended = self._end_text()
        begun = self._begin({"type": "tool_use", "id": call["id"], "name": name, "input": {}})
        self._blocks[-1] |= {"input": json.loads(arguments)}
        return [*ended, *begun, self._delta({"type": "input_json_delta", "partial_json": arguments}), self._stop()]

    @property
    def _in_text(self) -> bool:
        return bool(self._blocks) and self._blocks[-1]["type"] == "text"

    def _end_text(self) -> list[Any]:
        return [self._stop()] if self._in_text else []

    def _begin(self, block: dict[str, Any]) -> list[Any]:
        self._blocks.append(block)
        return [{"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _stop(self) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _ending(self) -> dict[str, Any]:
        work = self._work
        word = stopping_word(work.model, work.handles[0]) if work.ending == "stop" else None
        return {"stop_reason": _STOP_REASONS[work.ending], "stop_sequence": word}

    def _usage(self) -> dict[str, int]:
        """What has been read so far. Tokens of the prompt found in the cache are counted apart."""
        work = self._work
        return {
            "input_tokens": work.prompt_tokens - work.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": work.cached_tokens,
            "output_tokens": work.call.generated,
        }
