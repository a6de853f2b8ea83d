"""The choices of a completion request, filled as tokens arrive: for a whole answer, or event by event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..engine import CompletionHandle, Token
from .requests import fresh_id, now

if TYPE_CHECKING:
    from .call import Call
    from .models import Model


class Choice(Protocol):
    """One completion as it grows."""

    def push(self, token: Token) -> None:
        """Add the next token."""

    def take(self) -> list[dict[str, Any]]:
        """What a stream has to send for the tokens pushed since the last call."""


@dataclass
class CompletionWork:
    """A completion request being answered. `prompt_tokens`: of all its prompts together."""

    call: Call
    model: Model
    handles: list[CompletionHandle] = field(default_factory=list, kw_only=True)
    prompt_tokens: int = field(default=0, kw_only=True)

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields that begin a whole answer, and every event of a stream."""
        return {"id": fresh_id(prefix), "object": kind, "created": now(), "model": self.model.id}

    def usage(self) -> dict[str, Any]:
        """Token counts of a finished answer. Call it once: it adds those of the prompts to the metrics."""
        _, cached = self.call.count_prompt(self.handles)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.call.generated,
            "total_tokens": self.prompt_tokens + self.call.generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


async def push_all(work: CompletionWork, choices: Sequence[Choice]) -> None:
    """Wait for all tokens, and push each to its choice."""
    async for tokens in work.call.tokens(work.handles):
        for number, token in tokens:
            choices[number].push(token)


async def parts_of(work: CompletionWork, choices: Sequence[Choice]) -> AsyncIterator[list[dict[str, Any]]]:
    """Push tokens to their choices as they arrive, and yield what each step adds to the stream."""
    async for tokens in work.call.tokens(work.handles):
        parts: list[dict[str, Any]] = []
        for number, token in tokens:
            choices[number].push(token)
            parts += choices[number].take()
        if parts:
            yield parts


async def events_of(
    work: CompletionWork, choices: Sequence[Choice], head: dict[str, Any], first: list[Any], usage_wanted: bool
) -> AsyncIterator[list[dict[str, Any]]]:
    """The events of a stream in OpenAI's form, one part of a choice each. `first`: parts sent before any token."""
    head = head | ({"usage": None} if usage_wanted else {})
    if first:
        yield [{**head, "choices": [part]} for part in first]
    async for parts in parts_of(work, choices):
        yield [{**head, "choices": [part]} for part in parts]
    usage = work.usage()
    if usage_wanted:
        yield [{**head, "choices": [], "usage": usage}]
