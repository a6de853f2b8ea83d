"""Requests to the engine. They are plain values; results are on their handles."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..base import UsageError
from .checks import shown, whole
from .sampling_params import SamplingParams, StopConfig
from .structure import Structure

Tokens = tuple[int, ...]

DRAFTED = 8  # tokens per step that prompt lookup drafts if speculate is `True`


@dataclass(frozen=True)
class Request:
    """Complete `prompt` (token ids) `n` times.

    A completion depends on its prompt, the seed and its index among the `n`, and on nothing else that the engine
    does. `truncate="left"` drops the beginning of a prompt that does not fit. `top_logprobs` returns that many of the
    likeliest tokens at every position. `speculate` drafts up to that many tokens per step by prompt lookup
    (Saxena 2023, "Prompt lookup decoding"): the same tokens, in fewer steps for repetitive text. `kept_mass` reports
    the model's probability of all tokens that could be drawn in the place of each. With `buffer`, the request pauses
    while that many of its tokens have been sampled and not taken from its handle; a paused one makes room for others.
    """

    prompt: Tokens
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopConfig = field(default_factory=StopConfig)
    n: int = 1
    top_logprobs: int = 0
    truncate: str | None = None
    structure: Structure | None = None
    speculate: int = 0
    kept_mass: bool = False
    buffer: int | None = None

    def __post_init__(self) -> None:
        for name, least in {"n": 1, "top_logprobs": 0, "speculate": 0}.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.buffer is not None:
            whole("buffer", self.buffer, 1)
        if self.truncate not in (None, "left"):
            raise UsageError(f"truncate is {shown(self.truncate)}; it takes 'left'")


@dataclass(frozen=True)
class ScoreRequest:
    """Score each of `continuations` given `context`; none of them may be empty.

    `top_logprobs` returns that many of the likeliest tokens at every position of the first continuation.
    """

    context: Tokens
    continuations: tuple[Tokens, ...]
    top_logprobs: int = 0


@dataclass(frozen=True)
class LogitsRequest:
    """The raw logits of the token after `prompt`."""

    prompt: Tokens


@dataclass(frozen=True)
class HiddenRequest:
    """What the model's head reads after every token of `prompt`. Nothing is taken from the prefix cache."""

    prompt: Tokens


AnyRequest = Request | ScoreRequest | LogitsRequest | HiddenRequest
