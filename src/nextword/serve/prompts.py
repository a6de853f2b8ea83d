"""Prompts of requests → token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bodies import MOST_PROMPTS, PromptString
from .errors import ApiError

if TYPE_CHECKING:
    from .models import Model

_LONG = 64 << 10  # characters; a longer text is counted in pieces first
_PIECE = 16 << 10


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. `begins`: whether the tokenizer put its beginning-of-text token before it."""

    ids: tuple[int, ...]
    begins: bool = False


def prompts_of(value: Any, param: str = "prompt", most: int = MOST_PROMPTS) -> list[Any]:
    """The prompts in a field: several if it is a list without numbers, else one."""
    if not isinstance(value, list) or any(isinstance(item, int) for item in value):
        return [value]
    if len(value) > most:
        raise ApiError(400, f"{param} has {len(value)} texts; at most {most} are taken", param)
    return value


def encode_prompt(model: Model, prompt: Any, param: str = "prompt") -> Prompt:
    """A text, a list of ids and texts, or a `PromptString` as tokens. Special tokens in a text are special."""
    pieces = prompt if isinstance(prompt, list) else [prompt]
    ids: list[int] = []
    begins = False
    for number, piece in enumerate(pieces):
        if isinstance(piece, int):
            if piece >= model.vocabulary:
                last = model.vocabulary - 1
                raise ApiError(400, f"{param} has the token {piece}; the vocabulary has ids 0 to {last}", param)
            ids.append(piece)
            continue
        text = piece.prompt_string if isinstance(piece, PromptString) else piece
        check_size(model, text, param)
        if number:
            ids += model.tokenizer.encode(text, special=True)
            continue
        ids += model.lm.encode(text, special=True)
        bos = model.tokenizer.bos_id if model.tokenizer.adds_bos else None
        begins = bos is not None and not text.startswith(model.tokenizer.token_text(bos))
    if not ids:
        raise ApiError(400, f"{param} has an empty text. Give at least one token", param)
    return Prompt(tuple(ids), begins)


def check_size(model: Model, text: str, param: str) -> None:
    """Refuse a text that is certainly longer than the context, without tokenizing all of it at once.

    The tokenizer takes one text at a time: nobody should wait for one that nobody can use.
    """
    if len(text) <= _LONG:
        return
    pieces = range(0, len(text), _PIECE)
    count = sum(len(model.tokenizer.encode(text[start : start + _PIECE], special=True)) for start in pieces)
    if count > model.context + 8 * len(pieces):  # a cut makes a few tokens more
        raise too_long(model, count, param)


def too_long(model: Model, tokens: int, param: str) -> ApiError:
    """The error for a prompt of `tokens` tokens."""
    return ApiError(
        400,
        f"the prompt is too long: it has {tokens} tokens; the context holds {model.context}, at least one of them for"
        " the answer",
        param,
        "exceed_context_size_error",
        n_prompt_tokens=tokens,
        n_ctx=model.context,
    )
