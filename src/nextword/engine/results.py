"""What generation returns: plain values that the terminal, JSON, a page and a test all read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "end_of_text", "context"]


@dataclass(frozen=True)
class Alternative:
    """One candidate for the next token.

    `probability` is the model's own, softmax of the raw logits; `sampled_prob` is the probability after bias,
    penalties, temperature and truncation: what the sampler draws from.
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
    it was actually drawn with. `sample_index` numbers the completion within its batch, all of the first prompt first.
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


@dataclass(frozen=True)
class Timings:
    """Seconds of wall time, and tokens a second; `decode` counts all samples of the request.

    `cached_tokens` of the prompt were found in the prefix cache. `accepted_tokens` of the `drafted_tokens` that
    speculative decoding guessed were those that the model then drew.
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
    """One finished prompt. `text` does not repeat the prompt and ends before the stop string, if one ended it.

    `prompt_ids` are as they were read, after any cut. `seed` repeats it; `timings` are those of its whole request.
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


@dataclass(frozen=True)
class NextTokenDistribution:
    """The distribution of the next token at one temperature.

    `top` is ordered by probability, highest first. `entropy` is in nats; `covering_90` is the least number
    of tokens that together carry at least 90% of the mass; `tail_mass` is the mass outside `top`.
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


@dataclass(frozen=True)
class Score:
    """How probable the model holds a continuation: ln p and rank (1 is the likeliest) of each of its tokens."""

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]

    @property
    def logprob(self) -> float:
        """Sum over the tokens, in nats."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class TokenLogprob:
    """One token of a scored text; `logprob` (nats) is None for the first, which nothing precedes."""

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
        """exp of the mean negative log-probability a token; None for a single token, which nothing precedes."""
        import math

        scored = sum(token.logprob is not None for token in self.tokens)
        return math.exp(-self.logprob / scored) if scored else None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "logprob": self.logprob, "perplexity": self.perplexity}
