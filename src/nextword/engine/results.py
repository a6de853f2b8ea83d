"""Results of generation and scoring: frozen dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "end_of_text", "context"]


@dataclass(frozen=True)
class Alternative:
    """One candidate for the next token.

    `probability` is the model's own, softmax of the raw logits; `sampled_prob` is the probability after bias,
    penalties, temperature and truncation, which the sampler draws from.
    """

    id: int
    text: str
    probability: float
    sampled_prob: float


@dataclass(frozen=True)
class Token:
    """One generated token.

    `token` is the token's own text, `text` what it adds to the output (empty while a character is
    incomplete), `logprob` the natural logarithm of the model's own probability, `sampled_prob` the probability
    it was sampled with. `sample_index` is the index of its completion, those of the first prompt first. `kept_mass`,
    if asked for, is the model's probability of all tokens that could be drawn.
    """

    sample_index: int
    position: int
    id: int
    token: str
    text: str
    logprob: float
    sampled_prob: float
    alternatives: tuple[Alternative, ...] = ()
    finish: FinishReason | None = None
    kept_mass: float | None = None


@dataclass(frozen=True)
class Timings:
    """Wall time in seconds, and tokens per second; `decode` counts all samples of the request.

    `cached_tokens` of the prompt came from the prefix cache; `accepted_tokens` of the `drafted_tokens` of
    speculative decoding were right.
    """

    prompt_tokens: int
    prefill_seconds: float
    generated_tokens: int
    decode_seconds: float
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.generated_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Completion:
    """One finished completion. `text` excludes the prompt and a stop string that ended it.

    `prompt_ids` are the prompt as read, after truncation. `seed` reproduces it; `timings` are of the whole request.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    text: str
    tokens: tuple[Token, ...]
    finish: FinishReason
    sample_index: int
    seed: int
    timings: Timings

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def logprob(self) -> float:
        """Sum over the generated tokens of ln p under the model, in nats."""
        return sum(token.logprob for token in self.tokens)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the tokens, tinted by how unlikely they were."""
        from .plots import completion_bundle

        return completion_bundle(self)


@dataclass(frozen=True)
class NextTokenDistribution:
    """The distribution of the next token at one temperature.

    `top` is sorted by probability, highest first. `entropy` is in nats; `covering_90` is the smallest number
    of tokens with a total probability of at least 90%; `tail_mass` is the probability outside `top`.
    """

    prompt: str
    temperature: float
    top: tuple[Alternative, ...]
    entropy: float
    covering_90: int
    tail_mass: float
    vocabulary: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: bars."""
        from .plots import next_bundle

        return next_bundle(self)


@dataclass(frozen=True)
class Score:
    """The ln p and rank (1 is the likeliest) of each token of a continuation."""

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]

    @property
    def logprob(self) -> float:
        """Sum over the tokens, in nats."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a scored text; `logprob` (nats) is None for the first one."""

    id: int
    token: str
    logprob: float | None
    rank: int | None


@dataclass(frozen=True)
class ScoredText:
    """A text with the model's log-probability of each token given those before it."""

    text: str
    tokens: tuple[TokenLogprob, ...]

    @property
    def logprob(self) -> float:
        """Sum of the known log-probabilities, in nats."""
        return sum(token.logprob for token in self.tokens if token.logprob is not None)

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-probability per token; None for a single token."""
        import math

        scored = sum(token.logprob is not None for token in self.tokens)
        return math.exp(-self.logprob / scored) if scored else None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "logprob": self.logprob, "perplexity": self.perplexity}
