"""POST /v1/responses: OpenAI's Responses API for text and functions, over the same chat as its completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from .bodies import ChatBody, InputItem, Message, ResponseFormat, ResponsesBody
from .chat import Work, begin, said
from .errors import ApiError
from .requests import EventStream, answer, as_api_error, fresh_id, now
from .tools import call_of

if TYPE_CHECKING:
    from .call import Call

_REFUSED = {
    "previous_response_id": "no answers are kept here. Send the whole conversation as input",
    "conversation": "no conversations are kept here. Send the whole one as input",
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


def failure_of(error: Exception, number: int) -> dict[str, Any]:
    """A failure as the last event of a stream, whose first event has the number 0."""
    own = as_error(error)
    return {"type": "error", "sequence_number": number, "code": own.kind, "message": own.message, "param": own.param}


async def responses(call: Call, body: ResponsesBody) -> Response:
    """Answer a conversation in the form of OpenAI's responses."""
    work = await begin(call, _chat_body(body), body.max_output_tokens, "max_output_tokens")
    reply = Reply(work, body)
    if body.stream:
        return EventStream(reply.stream(), call.service.report, named=True, failure=reply.failure)
    async for _ in reply.stream():
        pass
    return answer(reply.content(done=True))


# ---- the conversation in chat's form


def _chat_body(body: ResponsesBody) -> ChatBody:
    for name, reason in _REFUSED.items():
        if getattr(body, name):
            raise ApiError(400, f"{name} is not supported by /v1/responses: {reason}", name)
    given = body.input if isinstance(body.input, list) else [InputItem(role="user", content=body.input)]
    messages = [Message(role="system", content=body.instructions)] if body.instructions else []
    for item in given:
        _add(messages, item)
    format = body.text.format if body.text else None
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": choice}
    return ChatBody(
        messages=messages,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stream=body.stream,
        response_format=ResponseFormat(type=format.type, json_schema={"schema": format.schema}) if format else None,
        tools=[_tool(tool) for tool in body.tools or []],
        tool_choice=choice,
        model=body.model,
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools of type {tool.get('type')!r} are not supported: only functions are", "tools")
    function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _add(messages: list[Message], item: InputItem) -> None:
    """Add an item of the input. The calls of a turn are in one message, as chat has them."""
    if item.type == "function_call_output":
        messages.append(Message(role="tool", content=_content(item.output), tool_call_id=item.call_id))
    elif item.type == "function_call":
        call = call_of(item.call_id or "", item.name or "", item.arguments or "{}")
        if not messages or messages[-1].role != "assistant":
            messages.append(Message(role="assistant"))
        messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
    elif item.type != "message":
        raise ApiError(
            400, f"input of type {item.type!r} is not supported: messages, calls and their outputs are", "input"
        )
    elif item.role is None:
        raise ApiError(400, "a message of input has no role", "input")
    else:
        messages.append(Message(role=item.role, content=_content(item.content)))


def _content(content: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
    if not isinstance(content, list):
        return content
    return [part | {"type": "text"} if part.get("type") in _TEXT_PARTS else part for part in content]


# ---- the answer


class Reply:
    """A response, and the events that build it up. They are numbered."""

    def __init__(self, work: Work, body: ResponsesBody) -> None:
        self._work, self._body = work, body
        self._id, self._created, self._numbers = fresh_id("resp"), now(), count()
        self._output: list[dict[str, Any]] = []

    def content(self, done: bool = False) -> dict[str, Any]:
        """The response as it is now, or once the stream is over."""
        work, body = self._work, self._body
        temperature = work.call.config.temperature if body.temperature is None else body.temperature
        status = self._status if done else "in_progress"
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
            "output": list(self._output),
            "parallel_tool_calls": bool(work.tools),
            "previous_response_id": None,
            "store": False,
            "temperature": temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or ("auto" if body.tools else "none"),
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
        }

    @property
    def _status(self) -> str:
        return "incomplete" if self._work.ending in ("length", "context") else "completed"

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
        yield [
            self._event("response.created", response=self.content()),
            self._event("response.in_progress", response=self.content()),
        ]
        async for text, calls in said(self._work):
            yield self._text(text) + [event for call in calls for event in self._call(call)]
        yield [
            *([] if self._output else self._begin_text()),
            *self._end_text(self._status),
            self._event(f"response.{self._status}", response=self.content(done=True)),
        ]

    def _text(self, text: str) -> list[Any]:
        """More text, in a message of its own behind a call."""
        if not text:
            return []
        new = [] if self._in_text else self._begin_text()
        self._output[-1]["content"][0]["text"] += text
        return [*new, self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])]

    @property
    def _in_text(self) -> bool:
        return bool(self._output) and self._output[-1]["type"] == "message"

    @property
    def _place(self) -> dict[str, Any]:
        return {**self._item_place, "content_index": 0}

    @property
    def _item_place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _begin_text(self) -> list[Any]:
        item = {"id": fresh_id("msg"), "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        added = self._begin(item)
        self._output[-1]["content"] = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
        part = dict(self._output[-1]["content"][0])
        return [*added, self._event("response.content_part.added", **self._place, part=part)]

    def _end_text(self, status: str = "completed") -> list[Any]:
        if not self._in_text:
            return []
        [part] = self._output[-1]["content"]
        return [
            self._event("response.output_text.done", **self._place, text=part["text"], logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            *self._end(status),
        ]

    def _call(self, call: dict[str, Any]) -> list[Any]:
        """A call of a function, which ends the text before it."""
        function = call["function"]
        item = {"id": fresh_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call["id"],
                "name": function["name"], "arguments": ""}  # fmt: skip
        events = [*self._end_text(), *self._begin(item)]
        self._output[-1]["arguments"] = arguments = function["arguments"]
        kind, place = "response.function_call_arguments", self._item_place
        return [
            *events,
            self._event(f"{kind}.delta", **place, delta=arguments),
            self._event(f"{kind}.done", **place, name=function["name"], arguments=arguments),
            *self._end("completed"),
        ]

    def _begin(self, item: dict[str, Any]) -> list[Any]:
        self._output.append(item)
        return [self._event("response.output_item.added", output_index=len(self._output) - 1, item=dict(item))]

    def _end(self, status: str) -> list[Any]:
        self._output[-1]["status"] = status
        item = dict(self._output[-1])
        return [self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)]

    def failure(self, error: Exception) -> dict[str, Any]:
        """A failure as the last event."""
        return failure_of(error, next(self._numbers))

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}
