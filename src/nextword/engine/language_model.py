"""The public model: text in, typed results out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from operator import index
from os import PathLike, fspath
from typing import Any

import numpy as np

from ..base import UsageError
from ..spec import ModelSpec
from ..text import begun
from ..weights.catalogue import DEFAULT_MODEL
from .checks import known, shown, whole
from .engine import MAX_SEQUENCES, Engine
from .handles import Stream
from .loading import LoadConfig, Loaded, load_weights
from .request import Request, ScoreRequest
from .results import Alternative, Completion, NextTokenDistribution, ScoredText, TokenLogprob
from .sampler import Distribution, adjust, log_softmax
from .sampling_params import SamplingParams, StopConfig

Prompt = str | Sequence[int]  # text, or token ids

_OF_STOP = ("max_tokens", "stop")
_OF_REQUEST = ("n", "top_logprobs", "truncate", "structure", "speculate")


class LanguageModel:
    """A model and its tokenizer, returned by `nextword.load`.

    Every method takes the fields of `SamplingParams` as keywords (temperature, top_k, top_p, min_p, typical_p,
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, order); the defaults are the
    model's exact distribution.
    """

    def __init__(self, loaded: Loaded, max_sequences: int = MAX_SEQUENCES) -> None:
        self.loaded = loaded
        self.name, self.tokenizer = loaded.name, loaded.tokenizer
        self.engine = Engine(loaded.backend, loaded.tokenizer, max_sequences=max_sequences)

    @property
    def spec(self) -> ModelSpec:
        return self.loaded.spec

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}, {self.spec.layers} layers, width {self.spec.width}, {self.loaded.precision})"
        )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a prompt, with the beginning-of-text token if the model was trained with one.

        Special tokens spelled out in `text` stay text unless `special` is set (as for a rendered chat template).
        """
        if not isinstance(text, str):
            raise UsageError(f"the text is {shown(text)}; it takes a str")
        return begun(self.tokenizer, self.tokenizer.encode(text, special=special))

    def stream(self, prompt: Prompt, **settings: Any) -> Stream:
        """Iterate over the tokens of a completion as they are sampled; the `n` samples of a prompt run in one batch.

        Also takes n, max_tokens, stop, top_logprobs, truncate ("left"), structure (a `Structure`) and speculate. The
        stream has the seed, the timings and the prompt as read as attributes.
        """
        return Stream(self.engine.submit(self.request(prompt, **settings)))

    def complete(self, prompt: Prompt, **settings: Any) -> Completion:
        """Complete one prompt. Takes the arguments of `stream` except `n`."""
        if "n" in settings:
            raise UsageError("complete takes no n. Use: complete_all([prompt], n=...)")
        return self.complete_all([prompt], **settings)[0]

    def complete_all(self, prompts: Sequence[Prompt], **settings: Any) -> list[Completion]:
        """Complete several prompts, `n` times each, in one batch; results are in the order of the prompts.

        With a seed, a completion depends only on its prompt, the seed and its index among the `n`, not on the other
        prompts or their order. Without one, each prompt gets a random seed.
        """
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
            raise UsageError(f"prompts is {shown(prompts)}; it takes a list of prompts. For one there is: complete")
        prompts = list(prompts)
        handles = self.engine.complete([self.request(prompt, **settings) for prompt in prompts])
        completions: list[Completion] = []
        for prompt, handle in zip(prompts, handles, strict=True):
            completions += handle.completions(self._text(prompt), len(completions))
        return completions

    def request(self, prompt: Prompt, **settings: Any) -> Request:
        """The request that `stream` submits. Raises UsageError for an invalid argument."""
        own = {name: settings.pop(name) for name in (*_OF_REQUEST, *_OF_STOP) if name in settings}
        stop = own.get("stop", ())
        if not isinstance(stop, str | Sequence) or isinstance(stop, bytes):
            raise UsageError(f"stop is {shown(stop)}; it takes a text or a list of texts")
        stops = StopConfig(
            own.get("max_tokens", StopConfig.max_tokens), (stop,) if isinstance(stop, str) else tuple(stop)
        )
        sampling = _sampling(settings, (*_OF_REQUEST, *_OF_STOP))
        return Request(
            tuple(self._ids(prompt)), sampling, stops, **{name: own[name] for name in _OF_REQUEST if name in own}
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids. Raises UsageError for what is neither text nor ids of this vocabulary."""
        if isinstance(prompt, str):
            return self.encode(prompt)
        if isinstance(prompt, bytes | bytearray | memoryview):
            raise UsageError(f"the prompt is {shown(prompt)}; it takes text. Decode it first: prompt.decode()")
        try:
            ids = [index(token) for token in prompt]
        except TypeError:
            raise UsageError(f"the prompt is {shown(prompt)}; it takes text or a list of token ids") from None
        for token in ids:
            whole("a token id of the prompt", token, 0, self.spec.vocabulary - 1)
        return ids

    def _text(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))

    def next_token_distribution(
        self, prompt: Prompt, temperature: float = 1.0, top: int = 10, **sampling: Any
    ) -> NextTokenDistribution:
        """The distribution of the next token at one temperature."""
        return self.next_token_distributions(prompt, [temperature], top, **sampling)[0]

    def next_token_distributions(
        self, prompt: Prompt, temperatures: Sequence[float], top: int = 10, **sampling: Any
    ) -> list[NextTokenDistribution]:
        """The distribution of the next token at several temperatures, from one forward pass."""
        top = whole("top", top, 1)
        if not isinstance(temperatures, Iterable):
            raise UsageError(f"temperatures is {shown(temperatures)}; it takes a list of numbers")
        settings = [_sampling({**sampling, "temperature": value}, ("top",)) for value in temperatures]
        ids = self._ids(prompt)
        text = self._text(prompt)
        raw = self.engine.logits(ids)
        return [self._distribution(text, raw, adjust(raw, params, ids, ()), params, top) for params in settings]

    def _distribution(
        self, text: str, raw: np.ndarray, adjusted: np.ndarray, sampling: SamplingParams, top: int
    ) -> NextTokenDistribution:
        own = np.exp(log_softmax(raw))
        ids, probabilities = Distribution(adjusted, sampling, whole=True).probabilities()
        shown = tuple(
            Alternative(int(token), self.tokenizer.token_text(int(token)), float(own[token]), float(p))
            for token, p in zip(ids[:top], probabilities[:top], strict=True)
        )
        positive = probabilities[probabilities > 0]
        covering = int(np.searchsorted(np.cumsum(probabilities), 0.9 * (1 - 1e-12), side="left")) + 1
        return NextTokenDistribution(
            prompt=text,
            temperature=sampling.temperature,
            top=shown,
            entropy=abs(float(-(positive * np.log(positive)).sum())),
            covering_90=min(covering, len(ids)),
            tail_mass=float(probabilities[top:].sum()),
            vocabulary=self.spec.vocabulary,
        )

    def logprobs(self, text: Prompt) -> ScoredText:
        """The ln p of every token of `text` (or of token ids) given those before it."""
        ids = self._ids(text)
        if not ids:
            raise UsageError("the text is empty: there is nothing to score. Give at least one token")
        first = TokenLogprob(ids[0], self.tokenizer.token_text(ids[0]), None, None)
        if len(ids) == 1:
            return ScoredText(self._text(text), (first,))
        [[score]] = self.engine.score([ScoreRequest((ids[0],), (tuple(ids[1:]),))])
        rest = [
            TokenLogprob(token, self.tokenizer.token_text(token), logprob, rank)
            for token, logprob, rank in zip(ids[1:], score.logprobs, score.ranks, strict=True)
        ]
        return ScoredText(self._text(text), (first, *rest))


def _sampling(settings: dict[str, Any], others: tuple[str, ...]) -> SamplingParams:
    """Keywords of a method as a `SamplingParams`; `others` are those it takes besides."""
    known(settings, (*(item.name for item in fields(SamplingParams)), *others))
    return SamplingParams(**settings)


def load(
    name: str | PathLike[str] = DEFAULT_MODEL,
    dtype: str = "auto",
    device: str = "auto",
    kv_dtype: str = "auto",
    threads: int | None = None,
) -> LanguageModel:
    """Load a model: a catalogue name, a Hugging Face folder, a .gguf file, or hf:owner/name.

    dtype: "auto" (as stored), "float32", "bfloat16", "float16", "q8_0" or "q4_k".
    device: "auto", "cpu", "cuda", "cuda:1", "mps", ...
    kv_dtype: of keys and values on a CPU: "auto", "float32", "float16" or "q8_0".
    threads: of the CPU, for the whole process; default: its cores.
    Raises UsageError for an unknown name or an invalid file, RunError if a download fails or memory runs out.
    """
    if isinstance(name, PathLike):
        name = fspath(name)
    if not isinstance(name, str):
        raise UsageError(f"name is {shown(name)}; it takes a str or a path")
    return LanguageModel(load_weights(name, LoadConfig(dtype, device, kv_dtype, threads)))
