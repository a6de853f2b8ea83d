"""POST /v1/responses: OpenAI's Responses API for text, over the same chat as its completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from .bodies import ChatBody, InputItem, Message, ResponseFormat, ResponsesBody
from .chat import Work, begin, said
from .errors import ApiError
from .requests import EventStream, answer, as_api_error, fresh_id, now

if TYPE_CHECKING:
    from .call import Call

_REFUSED = {
    "previous_response_id": "no answers are kept here. Send the whole conversation as input",
    "conversation": "no conversations are kept here. Send the whole one as input",
    "tools": "/v1/chat/completions takes them",
    "prompt": "no prompts are kept here. Give instructions and input",
    "background": "no answers are kept here",
    "top_logprobs": "/v1/chat/completions has them",
}
_TEXT_PARTS = ("input_text", "output_text")
_NAMES = {"messages": "input", "response_format": "text"}  # of chat's fields here


def as_error(error: Exception) -> ApiError:
    """Any failure as this endpoint shows it: chat's fields by their names here."""
    own = as_api_error(error)
    if own.param in _NAMES:
        name, (first, *rest) = _NAMES[own.param], own.message.split(" ")
        message = " ".join([first.replace(own.param, name), *rest])
        return ApiError(own.status, message, name, own.kind, own.headers, **own.more)
    return own


async def responses(call: Call, body: ResponsesBody) -> Response:
    """Answer a conversation in the form of OpenAI's responses."""
    work = await begin(call, _chat_body(body), body.max_output_tokens, "max_output_tokens")
    reply = Reply(work, body)
    if body.stream:
        return EventStream(reply.stream(), call.service.report, named=True, failure=reply.failure)
    text = "".join([part async for part in said(work)])
    return answer(reply.content(text))


def _chat_body(body: ResponsesBody) -> ChatBody:
    for name, reason in _REFUSED.items():
        if getattr(body, name):
            raise ApiError(400, f"{name} is not supported by /v1/responses: {reason}", name)
    given = body.input if isinstance(body.input, list) else [InputItem(role="user", content=body.input)]
    messages = [Message(role="system", content=body.instructions)] if body.instructions else []
    format = body.text.format if body.text else None
    return ChatBody(
        messages=messages + [_message(item) for item in given],
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        response_format=ResponseFormat(type=format.type, json_schema={"schema": format.schema}) if format else None,
        tool_choice=body.tool_choice,
        model=body.model,
    )


def _message(item: InputItem) -> Message:
    if item.type != "message":
        raise ApiError(400, f"input of type {item.type!r} is not supported: only messages are", "input")
    if item.role is None:
        raise ApiError(400, "a message of input has no role", "input")
    content = item.content
    if isinstance(content, list):
        content = [part | {"type": "text"} if part.get("type") in _TEXT_PARTS else part for part in content]
    return Message(role="system" if item.role == "developer" else item.role, content=content)


class Reply:
    """A response, and the events that build it up. They are numbered."""

    def __init__(self, work: Work, body: ResponsesBody) -> None:
        self._work, self._body = work, body
        self._id, self._item_id, self._created, self._numbers = fresh_id("resp"), fresh_id("msg"), now(), count()

    def content(self, text: str | None = None) -> dict[str, Any]:
        """The response with its whole text; None while that is being made."""
        work, body = self._work, self._body
        temperature = work.call.config.temperature if body.temperature is None else body.temperature
        status = "in_progress" if text is None else self._status
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": work.model.id,
            "output": [] if text is None else [self._item(self._status, text)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if text is None else self._usage(),
        }

    @property
    def _status(self) -> str:
        return "completed" if self._work.ending in ("stop", "end_of_text") else "incomplete"

    def _item(self, status: str, text: str | None = None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _usage(self) -> dict[str, Any]:
        prompt, generated = self._work.prompt_tokens, self._work.call.generated
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._work.cached_tokens},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + generated,
        }

    async def stream(self) -> AsyncIterator[list[Any]]:
        item, place = {"output_index": 0}, {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield [
            self._event("response.created", response=self.content()),
            self._event("response.in_progress", response=self.content()),
            self._event("response.output_item.added", **item, item=self._item("in_progress")),
            self._event("response.content_part.added", **place, part=_part("")),
        ]
        text = ""
        async for part in said(self._work):
            text += part
            yield [self._event("response.output_text.delta", **place, delta=part, logprobs=[])]
        yield [
            self._event("response.output_text.done", **place, text=text, logprobs=[]),
            self._event("response.content_part.done", **place, part=_part(text)),
            self._event("response.output_item.done", **item, item=self._item(self._status, text)),
            self._event(f"response.{self._status}", response=self.content(text)),
        ]

    def failure(self, error: Exception) -> dict[str, Any]:
        """A failure as the last event."""
        own = as_error(error)
        return self._event("error", code=own.kind, message=own.message, param=own.param)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
