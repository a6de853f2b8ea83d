"""Conversations → tokens: a model's own chat template, and which tokens are the assistant's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..text import Tokenizer
from ..text.chat import render_chat


class Turn(NamedTuple):
    """Consecutive tokens of one side of a conversation."""

    text: str
    ids: Sequence[int] | NDArray[np.uint32]
    learned: bool  # whether the assistant writes them


def encode_conversation(tokenizer: Tokenizer, conversation: str) -> list[Turn]:
    """The tokens of a conversation, the JSON of its messages, as the chat template writes them.

    What the assistant writes goes from the end of the prompt for a generation to the token that ends the turn. Raises
    UsageError where the template fails, or writes a turn differently once another one follows.
    """
    row: Mapping[str, Any] = json.loads(conversation)
    messages, extra = row["messages"], {"tools": row["tools"]} if "tools" in row else {}
    text = render_chat(tokenizer, messages, add_generation_prompt=False, **extra)
    edges = [0]
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = messages[:number], messages[: number + 1]
            prompt = render_chat(tokenizer, before, **extra) if before else ""
            whole = text if after == messages else render_chat(tokenizer, after, False, **extra)
            if not (text.startswith(whole) and whole.startswith(prompt)) or len(prompt) < edges[-1]:
                raise UsageError(
                    f"the chat template of {tokenizer.name} writes turn {number + 1} differently than it reads it, so"
                    " it cannot be said which tokens are the assistant's"
                )
            edges += [len(prompt), _end_of_turn(tokenizer, whole, len(prompt))]
    return _cut(tokenizer, text, [*edges, len(text)])


def _end_of_turn(tokenizer: Tokenizer, text: str, start: int) -> int:
    """Where the assistant stops: behind the control token that ends the turn, before a line end that follows it."""
    end = start + len(text[start:].rstrip())
    names = map(tokenizer.token_text, tokenizer.special.control)
    return end if text.endswith(tuple(names), start, end) else len(text)


def _cut(tokenizer: Tokenizer, text: str, edges: Sequence[int]) -> list[Turn]:
    """Turns between `edges`, every second one learned; a token across an edge belongs where it begins."""
    ids, starts = tokenizer.encode_with_starts(text)
    turns, first = [], 0
    for number, end in enumerate(edges[1:]):
        last = first
        while last < len(ids) and starts[last] < end:
            last += 1
        if last > first:
            turns.append(Turn(text[edges[number] : end], ids[first:last], number % 2 == 1))
        first = last
    return turns
