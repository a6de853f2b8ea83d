"""The engine: many sequences through one model. It keeps nothing of a call: that is `Generation`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import RunError, UsageError, free_memory
from ..models import Model, State
from ..text import Tokenizer
from .generation import Generation, Limits
from .results import Alternative
from .sampling import Distribution, Floats, Sampling, log_softmax

CHUNK = 1024  # prompt tokens forwarded at a time, so that memory does not grow with the prompt
LEAST_SHARED = 16  # tokens that several prompts must begin with for reading them once to pay


class PromptTooLong(UsageError):
    """A prompt that leaves no room for an answer. `fact` says so alone: the ways out depend on who asks."""

    def __init__(self, tokens: int, context: int, ways_out: str = "Shorten it") -> None:
        self.fact = (
            f"the prompt has {tokens} tokens; the model's context holds {context}, at least one of them for the answer"
        )
        super().__init__(f"{self.fact}. {ways_out}")


class Engine:
    """Runs prompts through a model.

    `model` is anything `nextword.models` builds; the engine knows no architecture by name.
    """

    def __init__(self, model: Model[Any], tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        alternatives: int = 0,
        n: int = 1,
    ) -> Generation:
        """Complete every prompt (token ids) `n` times; gives each token as soon as it is drawn.

        All are decoded as one batch; equal prompts are read once. A completion depends on its prompt, its seed and its
        number among the `n`, and on nothing else in the batch. Without a seed each prompt gets a fresh one. With
        `alternatives` K, every step carries the K likeliest tokens. Raises UsageError for a prompt that is empty or
        beyond the context.
        """
        sampling, limits = sampling or Sampling(), limits or Limits()
        fitted = [self._fit(prompt, limits) for prompt in prompts]
        return Generation(self, fitted, n, sampling, limits, alternatives)

    def _fit(self, prompt: Sequence[int], limits: Limits | None = None) -> tuple[int, ...]:
        """The prompt as it will be read: refused if it leaves no room for a token, or cut where that was asked."""
        context = self.model.longest
        if not prompt:
            raise UsageError("the prompt is empty: there is nothing to continue. Give at least one token")
        if context is None or len(prompt) < context:
            return tuple(prompt)
        if limits is None:
            raise PromptTooLong(len(prompt), context)
        if limits.truncate == "left":
            keep = max(context - limits.max_tokens, context // 2)
            return tuple(prompt[-keep:])
        raise PromptTooLong(len(prompt), context, "Shorten it, or cut its beginning with truncate='left'")

    def check_memory(self, rows: int, room: int) -> None:
        """Refuse a batch whose states (twice, while they are put together) cannot be held."""
        needed = 2 * rows * self.model.state_bytes(room)
        free = free_memory()
        if self.model.device.type == "cpu" and free is not None and needed > free:
            raise RunError(
                f"{rows} sequences of {room} tokens need {needed / 1e9:.1f} GB of cache, and {free / 1e9:.1f} GB are"
                " free. Ask for fewer completions at once or fewer tokens"
            )

    def prefill(self, prompts: Sequence[tuple[int, ...]], room: int = 0) -> tuple[Tensor, State]:
        """Read the prompts: logits of the next token (batch, vocabulary), and a state with `room` tokens a row.

        Equal prompts are computed once, and so is what all of them begin with. Prompts of different lengths are read
        one after the other: on a CPU that is as fast as padding them, and takes no memory for the padding.
        """
        distinct = list(dict.fromkeys(prompts))
        shared = _shared(distinct)
        if shared:
            _, before = self._read(distinct[0][:shared], room)
            read = [self._read(prompt[shared:], room, before.select([0])) for prompt in distinct]
        else:
            read = [self._read(prompt, room) for prompt in distinct]
        if len(prompts) == 1:
            return read[0]
        rows = [distinct.index(prompt) for prompt in prompts]
        logits = torch.cat([read[row][0] for row in rows])
        states = [read[row][1] for row in rows]
        return logits, type(states[0]).stack(states)

    def _read(self, prompt: tuple[int, ...], room: int, state: State | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.model.new_state(1, room)
        hidden = None
        for start in range(0, len(prompt), CHUNK):
            chunk = torch.tensor([prompt[start : start + CHUNK]], device=self.model.device)
            hidden = self.model.hidden(chunk, state)
        assert hidden is not None
        return self.model.logits(hidden[:, -1]), state

    def alternatives(
        self, raw: np.ndarray, adjusted: np.ndarray, sampling: Sampling, count: int
    ) -> tuple[Alternative, ...]:
        """The `count` likeliest tokens of one position, by the model's own probability."""
        own = np.exp(log_softmax(raw))
        top = np.argsort(-own, kind="stable")[:count]
        drawn = np.zeros_like(own)
        if sampling.greedy:
            drawn[int(np.argmax(adjusted))] = 1.0
        else:
            ids, probabilities = Distribution(adjusted, sampling).probabilities()
            drawn[ids] = probabilities
        return tuple(
            Alternative(int(i), self.tokenizer.token_text(int(i)), float(own[i]), float(drawn[i])) for i in top
        )

    @torch.inference_mode()
    def next_logits(self, prompt: Sequence[int]) -> Floats:
        """Raw logits of the token after `prompt`, float64 (vocabulary,)."""
        fitted = self._fit(prompt)
        return self.prefill([fitted])[0][0].double().numpy(force=True)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> tuple[Floats, list[int]]:
        """ln p of tokens[1:] given those before each, float64, and each one's rank (1 is the likeliest)."""
        context = self.model.longest
        if context is not None and len(tokens) > context:
            raise UsageError(f"the text has {len(tokens)} tokens; the model's context holds {context}. Shorten it")
        state = self.model.new_state(1, len(tokens))
        logprobs: list[float] = []
        ranks: list[int] = []
        for start in range(0, len(tokens) - 1, CHUNK):
            chunk = torch.tensor([tokens[start : min(start + CHUNK, len(tokens) - 1)]], device=self.model.device)
            logits = self.model.logits(self.model.hidden(chunk, state)[0])
            targets = torch.tensor(tokens[start + 1 : start + 1 + chunk.shape[1]], device=self.model.device)
            own = logits.gather(1, targets[:, None])
            logprobs += (own[:, 0].double() - logits.double().logsumexp(-1)).tolist()
            ranks += ((logits > own).sum(-1) + 1).tolist()
        return np.array(logprobs, np.float64), ranks


def tokens_to_read(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that `Engine.prefill` puts through the model for these prompts."""
    distinct = list(dict.fromkeys(prompts))
    return sum(map(len, distinct)) - _shared(distinct) * (len(distinct) - 1)


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, short of the whole of any; 0 where reading them once would not pay."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in sorted order, all others share what these two do
    most = min(map(len, prompts)) - 1
    shared = next((n for n, (a, b) in enumerate(zip(first[:most], last, strict=False)) if a != b), most)
    return shared if shared >= LEAST_SHARED else 0
