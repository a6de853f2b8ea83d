"""Prompts through a model's chat template, with shots as turns.

The messages are the same as in lm-evaluation-harness 0.4.13 (`apply_chat_template` with `fewshot_as_multiturn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..text import Contents, Tokenizer, begun, render_chat
from .design import ChatTemplate
from .scoring import encode
from .task import Chat, Encoded, Item, LogprobRequest, Message, Task


def chat_variants(tasks: Mapping[str, Task], how: ChatTemplate, system: str) -> dict[str, Task]:
    """Tasks by template name: raw, through the chat template, or both."""
    if how == "off":
        return dict(tasks)
    alone = len(tasks) == 1
    variants: dict[str, Task] = {}
    for name, task in tasks.items():
        if how == "both":
            variants["raw" if alone else name] = task
        variants["chat" if alone else f"{name}, chat"] = replace(task, chat=Chat(system))
    return variants


def chat_requests(task: Task, shots: Sequence[Item], item: Item, premise: str | None = None) -> list[LogprobRequest]:
    """The chat requests for one item: one per choice, or a single one.

    A `premise` replaces the question, for pointwise mutual information.
    """
    assert task.chat is not None
    system = _joined(task.chat.system, task.format.description, task.format.separator)
    before = [Message("system", system)] if system else []
    for shot in shots:
        question, answer = task.format.turn(shot.values)
        before += [Message("user", question), Message("assistant", answer)]
    return [
        LogprobRequest("", continuation, (*before, Message("user", question if premise is None else premise)))
        for question, continuation in task.format.chat_questions(item.values)
    ]


def _joined(first: str, second: str, separator: str) -> str:
    """Both, joined by the separator unless either has white space there."""
    apart = first and second and not (first[-1].isspace() or second[0].isspace())
    return first + (separator if apart else "") + second


def encode_chat(asked: Sequence[LogprobRequest], tokenizer: Tokenizer) -> list[Encoded]:
    """Chat requests in tokens, rendered by the model's template.

    Only the template produces control tokens: "<|im_end|>" in a message or a choice is text. A request with an empty
    continuation is to be generated. Raises UsageError if the template fails.
    """
    contents, contexts = _rendered(asked, tokenizer)
    return [
        encode(LogprobRequest(context, contents.hide(request.continuation)), tokenizer, contents.encode)
        if request.continuation
        else Encoded(tuple(begun(tokenizer, contents.encode(context))), ())
        for request, context in zip(asked, contexts, strict=True)
    ]


def show_chat(asked: Sequence[LogprobRequest], tokenizer: Tokenizer) -> list[LogprobRequest]:
    """Chat requests with the rendered text as their context; other requests unchanged."""
    if not any(request.messages for request in asked):
        return list(asked)
    contents, contexts = _rendered(asked, tokenizer)
    return [replace(request, context=contents.show(context)) for request, context in zip(asked, contexts, strict=True)]


def _rendered(asked: Sequence[LogprobRequest], tokenizer: Tokenizer) -> tuple[Contents, list[str]]:
    """Each request's messages as text, with control tokens in contents hidden."""
    contents = Contents(tokenizer, [text for request in asked for text in _texts(request)])
    rendered: dict[tuple[Message, ...], str] = {}  # choices of one question share their messages
    for request in asked:
        if request.context and not contents.hides:
            rendered[request.messages] = request.context
        elif request.messages not in rendered:
            rendered[request.messages] = _render(request.messages, contents.hide, tokenizer)
    return contents, [rendered[request.messages] for request in asked]


def _texts(request: LogprobRequest) -> Iterator[str]:
    yield request.continuation
    yield from (message.content for message in request.messages)


def _render(messages: Sequence[Message], hide: Callable[[str], str], tokenizer: Tokenizer) -> str:
    """The chat as text, up to the model's answer."""
    plain = [{"role": message.role, "content": hide(message.content)} for message in messages]
    return render_chat(tokenizer, plain, add_generation_prompt=True)
