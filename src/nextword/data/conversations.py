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

    What the assistant writes goes from the end of the prompt for it to the token that ends the turn, as in a
    generation. Raises UsageError where the template fails, or where it cannot be said what the assistant writes.
    """
    row: Mapping[str, Any] = json.loads(conversation)
    messages, extra = row["messages"], {"tools": row["tools"]} if "tools" in row else {}
    stops = list(map(tokenizer.token_text, tokenizer.stop_ids))
    for number, message in enumerate(messages, 1):
        if written := [stop for stop in stops if stop in str(message.get("content"))]:
            raise UsageError(f"message {number} contains {written[0]}, which ends a turn")
    text = render_chat(tokenizer, messages, add_generation_prompt=False, **extra)
    edges = [0]
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render_chat(tokenizer, messages[:number], **extra) if number else ""
            if not text.startswith(prompt) or len(prompt) < edges[-1]:
                raise UsageError(
                    f"the chat template of {tokenizer.name} does not write message {number + 1} behind the prompt for"
                    " it, so it cannot be said which tokens are the assistant's"
                )
            edges += [len(prompt), _end_of_turn(text, len(prompt), stops, tokenizer.name)]
    return _cut(tokenizer, text, [*edges, len(text)])


def _end_of_turn(text: str, start: int, stops: Sequence[str], name: str) -> int:
    """The end of the first token behind `start` that ends a generation."""
    ends = [text.index(stop, start) + len(stop) for stop in stops if stop in text[start:]]
    if not ends:
        raise UsageError(f"the chat template of {name} writes no token that ends the assistant's turn")
    return min(ends)


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
