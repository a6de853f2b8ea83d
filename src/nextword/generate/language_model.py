"""A loaded model as a person uses it: text in, typed results out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..base import UsageError
from ..spec import ModelSpec
from ..weights import Dtype, Loaded
from ..weights import load as load_weights
from .engine import Engine, Limits
from .results import Alternative, Completion, NextTokens, ScoredText, Step, TokenLogprob
from .sampling import Distribution, Sampling, adjust, log_softmax


class LanguageModel:
    """A model and its tokenizer. Made by `nextword.load`.

    Settings of every method are those of `Sampling` (temperature, top_k, top_p, min_p, typical_p,
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, order) as keywords; the
    defaults are the model's exact distribution.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.name, self.tokenizer = loaded.name, loaded.tokenizer
        self.engine = Engine(loaded.model, loaded.tokenizer)

    @property
    def spec(self) -> ModelSpec:
        return self.loaded.spec

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.spec.layers} layers, width {self.spec.width}, {self.loaded.precision})"
        )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a prompt, with the beginning-of-text token where the model was trained with one.

        Special tokens written in `text` stay text unless `special` is set (as for a rendered chat).
        """
        ids = self.tokenizer.encode(text, special=special)
        bos = self.tokenizer.bos_id
        if self.tokenizer.adds_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        n: int = 1,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        alternatives: int = 0,
        truncate: str | None = None,
        **sampling: Any,
    ) -> Iterator[Step]:
        """Yield the tokens of a completion as they are drawn; `n` completions run as one batch."""
        if n < 1:
            raise UsageError(f"n is {n}; it takes a whole number of at least 1")
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        limits = Limits(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), truncate)
        return self.engine.stream([ids] * n, Sampling(**sampling), limits, alternatives)

    def complete(self, prompt: str | Sequence[int], **settings: Any) -> Completion:
        """Finish one prompt. Takes what `stream` takes, except `n`."""
        return self.complete_all([prompt], **settings)[0]

    def complete_all(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        n: int = 1,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        alternatives: int = 0,
        truncate: str | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Finish several prompts, `n` times each, as one batch; results stand in the order of the prompts."""
        if n < 1:
            raise UsageError(f"n is {n}; it takes a whole number of at least 1")
        texts = [
            prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for prompt in prompts for _ in range(n)
        ]
        ids = [self.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts for _ in range(n)]
        if not ids:
            return []
        limits = Limits(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop), truncate)
        steps: list[list[Step]] = [[] for _ in ids]
        for step in self.engine.stream(ids, Sampling(**sampling), limits, alternatives):
            steps[step.choice].append(step)
        return [gather(text, prompt, found) for text, prompt, found in zip(texts, ids, steps, strict=True)]

    def next_tokens(
        self, prompt: str | Sequence[int], temperature: float = 1.0, top: int = 10, **sampling: Any
    ) -> NextTokens:
        """The distribution of the next token at one temperature; see `next_tokens_at` for several."""
        return self.next_tokens_at(prompt, [temperature], top, **sampling)[0]

    def next_tokens_at(
        self, prompt: str | Sequence[int], temperatures: Sequence[float], top: int = 10, **sampling: Any
    ) -> list[NextTokens]:
        """The distribution of the next token at several temperatures, from one pass through the model."""
        if top < 1:
            raise UsageError(f"top is {top}; it takes a whole number of at least 1")
        settings = [Sampling(temperature=temperature, **sampling) for temperature in temperatures]
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)
        raw = self.engine.next_logits(ids)
        return [self._distribution(text, raw, adjust(raw, each, ids, ()), each, top) for each in settings]

    def _distribution(
        self, text: str, raw: np.ndarray, adjusted: np.ndarray, sampling: Sampling, top: int
    ) -> NextTokens:
        own = np.exp(log_softmax(raw))
        ids, probabilities = Distribution(adjusted, sampling).probabilities()
        shown = tuple(
            Alternative(int(token), self.tokenizer.token_text(int(token)), float(own[token]), float(p))
            for token, p in zip(ids[:top], probabilities[:top], strict=True)
        )
        positive = probabilities[probabilities > 0]
        covering = int(np.searchsorted(np.cumsum(probabilities), 0.9 * (1 - 1e-12), side="left")) + 1
        return NextTokens(
            prompt=text,
            temperature=sampling.temperature,
            top=shown,
            entropy=abs(float(-(positive * np.log(positive)).sum())),
            covering_90=min(covering, len(ids)),
            others=float(probabilities[top:].sum()),
            vocabulary=self.spec.vocabulary,
        )

    def logprobs(self, text: str) -> ScoredText:
        """ln p of every token of `text` given those before it."""
        ids = self.encode(text)
        logprobs, ranks = self.engine.score(ids)
        first = TokenLogprob(ids[0], self.tokenizer.token_text(ids[0]), None, None)
        rest = [
            TokenLogprob(token, self.tokenizer.token_text(token), float(value), rank)
            for token, value, rank in zip(ids[1:], logprobs, ranks, strict=True)
        ]
        return ScoredText(text, (first, *rest))


def gather(prompt: str, prompt_ids: Sequence[int], steps: Sequence[Step]) -> Completion:
    """The steps of one finished completion as a `Completion`."""
    finish = steps[-1].finish if steps else None
    if finish is None:
        raise ValueError("the completion has not finished")
    return Completion(
        prompt, tuple(prompt_ids), "".join(step.text for step in steps), tuple(steps), finish, steps[0].choice
    )


def load(name: str = "smollm2-135m-instruct", dtype: Dtype = "auto", device: str = "auto") -> LanguageModel:
    """Load a model: a catalogue name, a Hugging Face folder, a .gguf file, or hf:owner/name.

    See `nextword.weights.load` for `dtype` and `device`, and for the errors.
    """
    return LanguageModel(load_weights(name, dtype, device))


__all__ = ["LanguageModel", "gather", "load"]
