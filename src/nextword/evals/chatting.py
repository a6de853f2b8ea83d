"""Tasks asked through a model's chat template: system message, shots as turns, and the question as the last one.

The messages are those that lm-evaluation-harness 0.4.13 makes (`apply_chat_template` with `fewshot_as_multiturn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ..base import UsageError
from ..text import Contents, Tokenizer, render_chat
from .harness_form import joined
from .scoring import begun, encode
from .task import Chat, Encoded, Item, Message, Request, Task

ChatTemplate = Literal["off", "on", "both"]


def chat_forms(forms: Mapping[str, Task], how: ChatTemplate, system: str) -> dict[str, Task]:
    """The forms of a task as they are asked: raw, through the chat template, or each of them in both ways."""
    if how == "off":
        return dict(forms)
    alone = len(forms) == 1
    found: dict[str, Task] = {}
    for name, task in forms.items():
        if how == "both":
            found["raw" if alone else name] = task
        found["chat" if alone else f"{name}, chat"] = replace(task, chat=Chat(system))
    return found


def chat_requests(task: Task, shots: Sequence[Item], item: Item, premise: str | None = None) -> list[Request]:
    """What the model is asked of one item in a chat: a request a choice, or a single one.

    A `premise` replaces the question, for pointwise mutual information.
    """
    assert task.chat is not None
    before = [*_opening(task, item), *(message for shot in shots for message in _turn(task, shot))]
    return [
        Request(
            "", continuation,
            (*before, Message("user", asked), *([Message("assistant", given)] if given else ())),
        )
        for question, given, continuation in task.form.turns(item.values)
        for asked in [question if premise is None else premise]
    ]  # fmt: skip


def _opening(task: Task, item: Item) -> list[Message]:
    assert task.chat is not None
    system = joined(task.chat.system, task.form.opening(item.values), task.form.separator)
    return [Message("system", system)] if system else []


def _turn(task: Task, shot: Item) -> Iterator[Message]:
    question, answer = task.form.turn(shot.values)
    yield Message("user", question)
    if answer is not None:
        yield Message("assistant", answer)


def encode_chat(asked: Sequence[Request], tokenizer: Tokenizer) -> list[Encoded]:
    """Chat requests in tokens, as the model's template writes them.

    Only the template makes control tokens: "<|im_end|>" in a message or a choice is text. A request whose
    continuation is empty is one to write on from. Raises UsageError for what the template refuses.
    """
    contents, contexts = _rendered(asked, tokenizer)
    return [
        encode(Request(context, contents.hide(request.continuation)), tokenizer, contents.encode)
        if request.continuation
        else Encoded(begun(contents.encode(context), tokenizer), ())
        for request, context in zip(asked, contexts, strict=True)
    ]


def show_chat(asked: Sequence[Request], tokenizer: Tokenizer) -> list[Request]:
    """Chat requests with the text that the model reads as their context; others as they are."""
    if not any(request.messages for request in asked):
        return list(asked)
    contents, contexts = _rendered(asked, tokenizer)
    return [replace(one, context=contents.show(context)) for one, context in zip(asked, contexts, strict=True)]


def _rendered(asked: Sequence[Request], tokenizer: Tokenizer) -> tuple[Contents, list[str]]:
    """Each request's messages as text, in which contents are hidden; one that is shown has it, if nothing is hidden."""
    contents = Contents(tokenizer, [each for one in asked for each in _texts(one)])
    found: dict[tuple[Message, ...], str] = {}  # choices of one question share their messages
    for request in asked:
        if request.context and not contents.hides:
            found[request.messages] = request.context
        elif request.messages not in found:
            found[request.messages] = _render(request.messages, contents.hide, tokenizer)
    return contents, [found[request.messages] for request in asked]


def _texts(request: Request) -> Iterator[str]:
    yield request.continuation
    yield from (message.content for message in request.messages)


def _render(messages: Sequence[Message], hide: Callable[[str], str], tokenizer: Tokenizer) -> str:
    """The chat as text, up to where the model goes on."""
    told = [{"role": message.role, "content": hide(message.content)} for message in messages]
    open_answer = messages[-1].role == "assistant"
    text = render_chat(tokenizer, told, add_generation_prompt=not open_answer)
    return up_to_answer(text, told[-1]["content"], tokenizer) if open_answer else text


def up_to_answer(text: str, answer: str, tokenizer: Tokenizer) -> str:
    """A rendered chat cut where its last answer ends, as transformers does (`continue_final_message`)."""
    bare = answer.strip()
    start = text.rfind(bare)
    if start < 0:
        raise UsageError(f"the chat template of {tokenizer.name} does not render the beginning of an answer ({bare!r})")
    whole = answer.lstrip()
    kept = whole if text.startswith(whole, start) else bare  # a template may take the spaces around it away
    return text[: start + len(kept)]
