"""Chat templates: messages → a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..base import UsageError
from .contents import Contents
from .tokenizer import Tokenizer, begun


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    **extra: Any,
) -> str:
    """Render a conversation with the model's chat template; encode the result with `special=True`.

    `messages` are {"role": ..., "content": ...}; `extra` are more variables of the template (tools,
    documents, enable_thinking, ...); `chat_template` names one of several, or is a template itself.
    Raises UsageError if there is no template, if it fails, or if it takes too much time or memory.
    """
    from .jinja import render  # brings subprocess and selectors, which a completion does not need

    template = _choose(tokenizer, extra.pop("chat_template", None))
    variables = {
        "tools": None,
        "documents": None,
        **tokenizer.special.texts,
        **extra,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
    }
    return render(template, variables, f"the chat template of {tokenizer.name}")


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], chat_template: str | None = None, **extra: Any
) -> tuple[list[int], str]:
    """The tokens of a conversation up to the model's answer, and their text.

    Takes and raises what `render_chat` does. Only the template writes control tokens: "<|im_end|>" in a message, or in
    a variable such as `tools`, is text.
    """
    contents = Contents(tokenizer, _texts([messages, extra]))
    if contents.hides:
        messages, extra = _mapped(messages, contents.hide), _mapped(extra, contents.hide)
    rendered = render_chat(tokenizer, messages, add_generation_prompt=True, chat_template=chat_template, **extra)
    return begun(tokenizer, contents.encode(rendered)), contents.show(rendered)


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data, the keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with all of `_texts` changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def _choose(tokenizer: Tokenizer, wanted: str | None) -> str:
    if wanted is not None:
        return tokenizer.chat_templates.get(wanted, wanted)
    if tokenizer.chat_template is None:
        known = ", ".join(sorted(tokenizer.chat_templates))
        hint = f" Name one of: {known}." if known else " It is not a chat model: use nextword complete."
        raise UsageError(f"{tokenizer.name} has no chat template.{hint}")
    return tokenizer.chat_template
