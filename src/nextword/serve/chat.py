"""POST /v1/chat/completions: OpenAI's chat, through the model's own template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..base import UsageError
from ..engine import CompletionHandle, Request, Structure
from ..text import encode_chat
from .bodies import ChatBody, Message, ResponseFormat, decode
from .choices import CompletionWork, events_of, push_all
from .errors import ApiError
from .extension import sampling_extension
from .pieces import Entry, Pieces, candidates, name_of
from .prompts import Prompt, check_size
from .requests import FINISH, EventStream, answer, check_stream_options, most_tokens, requests_of
from .tools import Tools, ToolText

if TYPE_CHECKING:
    from .call import Call
    from .models import Model

_OWN = ("messages", "tools", "chat_template", "add_generation_prompt", "documents")  # not a request's to set


@dataclass
class Work(CompletionWork):
    """A chat request being answered."""

    body: ChatBody
    tools: Tools | None
    ending: str = "length"  # of `said`, as is `cached_tokens`
    cached_tokens: int = 0

    @property
    def handle(self) -> CompletionHandle | None:
        """None if no token was asked for."""
        return self.handles[0] if self.handles else None


async def chat(call: Call, body: ChatBody) -> Response:
    """Answer a conversation."""
    usage_wanted = check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if body.functions:
        raise ApiError(400, "functions are not supported. Give them as tools", "functions")
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    work = await begin(call, body, getattr(body, param), param)
    if body.stream:
        return EventStream(_stream(work, usage_wanted), call.service.report, done=True)
    return answer(await _whole(work))


def prompt_of(model: Model, body: ChatBody, tools: Tools | None) -> Prompt:
    """What the model reads of a conversation. Raises ApiError."""
    return template_prompt(model, body.messages, tools.shown if tools else None, body.chat_template_kwargs)[0]


async def begin(call: Call, body: ChatBody, most: int | None, param: str) -> Work:
    """Start to answer a conversation, in any API of chat. `most`: tokens of the answer, from the field `param`."""
    call.admit(body.n or 1)
    model = await call.use(body.model)
    work = Work(call, model, body, Tools.of(model, body))
    max_tokens = most_tokens(call, model, most, None, param)
    requests = await call.prepare(lambda: _requests(work, max_tokens))
    work.handles = await call.start(model, requests if max_tokens else [])
    return work


async def said(work: Work) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Text and calls of tools as they arrive, for APIs of one choice. Then `work` has what ended the answer."""
    choice = _Choice(work, 0)
    async for tokens in work.call.tokens(work.handles):
        for _, token in tokens:
            choice.push(token)
            work.ending = token.finish or work.ending
        if choice.text or choice.calls:
            yield choice.text, choice.calls
        choice.clear()
    if choice.finish == "tool_calls":
        work.ending = choice.finish
    _, work.cached_tokens = work.call.count_prompt(work.handles)


def template_prompt(
    model: Model, messages: Sequence[Message], tools: list[dict[str, Any]] | None, kwargs: dict[str, Any] | None
) -> tuple[Prompt, str]:
    """A conversation as the model reads it, in tokens and as text. Raises ApiError."""
    plain = [_plain(message) for message in messages]
    check_size(model, "\n".join(message["content"] for message in plain), "messages")
    extra: dict[str, Any] = {name: value for name, value in (kwargs or {}).items() if name not in _OWN}
    if tools:
        extra["tools"] = tools
    try:
        ids, text = encode_chat(model.tokenizer, plain, **extra)
    except UsageError as error:
        kind = None if model.tokenizer.chat_template else "no_chat_template_error"
        raise ApiError(400, str(error), "messages", kind) from None
    return Prompt(tuple(ids)), text


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates take it: its content is one text, and the arguments of its calls are objects."""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    return plain


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    with suppress(ApiError):  # what a model has written need not be JSON
        return {**call, "function": {**function, "arguments": decode(function["arguments"].encode(), dict)}}
    return call


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content. Raises ApiError for other parts than text."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        kind = part.get("type")
        if kind != "text":
            raise ApiError(400, f"content of type {kind!r} is not supported: models here read text only", "messages")
        if not isinstance(part.get("text"), str):
            raise ApiError(400, "a text part of a message has no text", "messages")
    return "".join(part["text"] for part in content)


def _requests(work: Work, max_tokens: int) -> list[Request]:
    body, model = work.body, work.model
    prompt = prompt_of(model, body, work.tools)
    work.prompt_tokens = len(prompt.ids)
    return requests_of(
        work.call, model, body, [prompt], max_tokens=max(1, max_tokens), n=body.n or 1, bias=body.logit_bias,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0, structure=_structure(work), param="messages",
    )  # fmt: skip


def _structure(work: Work) -> Structure | None:
    forced = work.tools.structure if work.tools else None
    wanted = structure_of(work.body.response_format)
    if forced is not None and wanted is not None:
        raise ApiError(400, "response_format and a required tool exclude each other", "response_format")
    return forced or wanted


def structure_of(wanted: ResponseFormat | None) -> Structure | None:
    """What an answer's text must be. Raises ApiError for a schema that cannot be obeyed."""
    if wanted is None or wanted.type == "text":
        return None
    schema: Any = {"type": "object"}
    if wanted.type == "json_schema":
        schema = (wanted.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise ApiError(
                400, "response_format takes json_schema: {name, schema}, with schema an object", "response_format"
            )
    try:
        return Structure(json_schema=schema)
    except UsageError as error:
        raise ApiError(400, f"response_format: {error}", "response_format") from None


# ---- answers


class _Choice:
    """One choice: what it says, the tools it calls, its entries of logprobs, and its end."""

    def __init__(self, work: Work, index: int) -> None:
        self._work, self.index, self._pieces = work, index, Pieces(work.model.tokenizer)
        self._tools = ToolText(work.tools) if work.tools else None
        self.text = ""
        self.calls: list[dict[str, Any]] = []
        self.entries: list[Entry] = []
        self.finish: str | None = None if work.handles else "length"

    def push(self, token: Any) -> None:
        text, entries = self._pieces.push(token)
        if self._tools is not None:
            text, calls = self._tools.push(text, bool(token.finish))
            self.calls += calls
        self.text += text
        self.entries += entries
        if token.finish:
            called = self._tools is not None and self._tools.called
            self.finish = "tool_calls" if called else FINISH[token.finish]

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text if self.text or not self.calls else None}
        return message | ({"tool_calls": self.calls} if self.calls else {})

    def whole(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "message": self.message(),
            "logprobs": self._logprobs(),
            "finish_reason": self.finish,
            **self._extension(),
        }

    def take(self) -> list[dict[str, Any]]:
        """The deltas with what has come since the last call; the end is an empty one."""
        delta: dict[str, Any] = {"content": self.text} if self.text else {}
        if self.calls:
            delta["tool_calls"] = self.calls
        deltas = []
        wants_entries = bool(self.entries) and bool(self._work.body.logprobs or self._work.body.nextword)
        if delta or wants_entries:
            deltas.append(self._chunk(delta or {"content": ""}, None) | self._extension())
        if self.finish:
            deltas.append(self._chunk({}, self.finish, last=True))
        self.clear()
        return deltas

    def clear(self) -> None:
        self.text, self.calls, self.entries = "", [], []

    def _chunk(self, delta: dict[str, Any], finish: str | None, last: bool = False) -> dict[str, Any]:
        logprobs = None if last else self._logprobs()
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _extension(self) -> dict[str, Any]:
        if not self._work.body.nextword:
            return {}
        return {"nextword": sampling_extension(self._work.handle, self.entries)}

    def _logprobs(self) -> dict[str, Any] | None:
        return {"content": [self._entry(entry) for entry in self.entries]} if self._work.body.logprobs else None

    def _entry(self, entry: Entry) -> dict[str, Any]:
        tokenizer, token = self._work.model.tokenizer, entry.token
        return {
            "token": name_of(tokenizer, token.id),
            "logprob": token.logprob,
            "bytes": list(entry.data),
            "top_logprobs": [
                {"token": name_of(tokenizer, id), "logprob": logprob, "bytes": list(tokenizer.token_bytes(id))}
                for id, logprob in candidates(token)
            ],
        }


def _choices(work: Work) -> list[_Choice]:
    return [_Choice(work, index) for index in range(work.body.n or 1)]


async def _whole(work: Work) -> dict[str, Any]:
    choices = _choices(work)
    await push_all(work, choices)
    head = work.head("chatcmpl", "chat.completion")
    return {**head, "choices": [choice.whole() for choice in choices], "usage": work.usage()}


def _stream(work: Work, usage_wanted: bool) -> AsyncIterator[list[Any]]:
    choices, role = _choices(work), {"role": "assistant", "content": ""}
    first = [{"index": choice.index, "delta": role, "logprobs": None, "finish_reason": None} for choice in choices]
    if not work.handles:
        first += [delta for choice in choices for delta in choice.take()]
    return events_of(work, choices, work.head("chatcmpl", "chat.completion.chunk"), first, usage_wanted)
