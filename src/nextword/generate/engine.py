"""The engine: many sequences through one model, a token each at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import RunError, UsageError, free_memory
from ..models import Model, State
from ..text import StreamDecoder, Tokenizer
from .results import Alternative, FinishReason, Step, Timings
from .sampling import Distribution, Floats, Sampling, adjust, choose, fresh_seed, log_softmax

CHUNK = 1024  # prompt tokens forwarded at a time, so that memory does not grow with the prompt
LEAST_SHARED = 16  # tokens that several prompts must begin with for reading them once to pay


@dataclass(frozen=True)
class Limits:
    """When a completion ends. Raises UsageError for values that make no sense."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    truncate: str | None = None  # "left" cuts a prompt that does not fit; None refuses it

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; it takes a whole number of at least 1")
        if any(not stop for stop in self.stop):
            raise UsageError("a stop string is empty; it would end every completion before its first token")
        if self.truncate not in (None, "left"):
            raise UsageError(f"truncate is {self.truncate!r}; it takes 'left'")


@dataclass
class _Sequence:
    """One completion under way."""

    choice: int
    prompt: tuple[int, ...]
    decoder: StreamDecoder
    generated: list[int] = field(default_factory=list)
    held: str = ""  # decoded, but it may be the beginning of a stop string


class Engine:
    """Runs prompts through a model.

    `model` is anything `nextword.models` builds; the engine knows no architecture by name.
    """

    def __init__(self, model: Model[Any], tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.timings = Timings(0, 0.0, 0, 0.0)  # of the last finished `stream`
        self.seed = 0  # used by the last `stream`
        self.read_prompts: list[tuple[int, ...]] = []  # token ids of the last `stream`, after any cut

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        alternatives: int = 0,
    ) -> Iterator[Step]:
        """Complete every prompt (token ids); yield each token as soon as it is drawn.

        Prompts are decoded as one batch; equal ones are read once. `Step.choice` is the prompt's index, and
        the key, with the seed, of its random numbers. With `alternatives` K, every step carries the K
        likeliest tokens. Raises UsageError for a prompt that is empty or beyond the context.
        """
        sampling, limits = sampling or Sampling(), limits or Limits()
        self.read_prompts = [self._fit(prompt, limits) for prompt in prompts]
        return self._run(self.read_prompts, sampling, limits, alternatives)

    def _fit(self, prompt: Sequence[int], limits: Limits) -> tuple[int, ...]:
        """The prompt as it will be read: refused if it leaves no room for a token, or cut where that was asked."""
        context = self.model.longest
        if not prompt:
            raise UsageError("the prompt is empty: there is nothing to continue. Give at least one token")
        if context is None or len(prompt) < context:
            return tuple(prompt)
        if limits.truncate == "left":
            keep = max(context - limits.max_tokens, context // 2)
            return tuple(prompt[-keep:])
        raise UsageError(
            f"the prompt has {len(prompt)} tokens; the model's context holds {context}, at least one of them for the"
            " answer. Shorten it, or cut its beginning with --truncate left"
        )

    @torch.inference_mode()
    def _run(
        self, prompts: list[tuple[int, ...]], sampling: Sampling, limits: Limits, alternatives: int
    ) -> Iterator[Step]:
        self.seed = fresh_seed() if sampling.seed is None else sampling.seed
        began = time.perf_counter()
        running = [_Sequence(choice, prompt, self.tokenizer.stream()) for choice, prompt in enumerate(prompts)]
        room = max(map(len, prompts)) + limits.max_tokens
        room = min(self.model.longest or room, room)
        self._check_memory(len(prompts), room)
        logits, state = self.prefill(prompts, room)
        prefilled = time.perf_counter()
        generated = 0
        while running:
            steps = self._steps(running, logits, sampling, limits, alternatives)
            generated += len(steps)
            yield from steps
            rows = [row for row, step in enumerate(steps) if step.finish is None]
            if len(rows) < len(running):
                running = [running[row] for row in rows]
                state = state.select(rows) if running else state
            if running:
                tokens = torch.tensor([[sequence.generated[-1]] for sequence in running], device=self.model.device)
                logits = self.model.logits(self.model.hidden(tokens, state)[:, -1])
        ended = time.perf_counter()
        self.timings = Timings(
            len(set(prompts)) and sum(map(len, set(prompts))), prefilled - began, generated, ended - prefilled
        )

    def _check_memory(self, rows: int, room: int) -> None:
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
        shared = _shared(distinct) if len(distinct) > 1 else 0
        if shared >= LEAST_SHARED:
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

    def _steps(
        self, running: list[_Sequence], logits: Tensor, sampling: Sampling, limits: Limits, alternatives: int
    ) -> list[Step]:
        rows = logits.numpy(force=True)
        return [
            self._step(sequence, row, sampling, limits, alternatives)
            for sequence, row in zip(running, rows, strict=True)
        ]

    def _step(
        self, sequence: _Sequence, raw: np.ndarray, sampling: Sampling, limits: Limits, alternatives: int
    ) -> Step:
        position = len(sequence.prompt) + len(sequence.generated)
        adjusted = adjust(raw, sampling, sequence.prompt, sequence.generated)
        token, drawn = choose(adjusted, sampling, self.seed, sequence.choice, position)
        shown: tuple[Alternative, ...] = ()
        if alternatives:
            shown = self.alternatives(raw, adjusted, sampling, alternatives)
        sequence.generated.append(token)
        finish, text = self._text_and_finish(sequence, token, position + 1, limits)
        return Step(
            choice=sequence.choice,
            position=position,
            id=token,
            token=self.tokenizer.token_text(token),
            text=text,
            logprob=_log_probability(raw, token),
            drawn=drawn,
            alternatives=shown,
            finish=finish,
        )

    def _text_and_finish(
        self, sequence: _Sequence, token: int, length: int, limits: Limits
    ) -> tuple[FinishReason | None, str]:
        """Text that may be shown now, and why the sequence ends here, if it does."""
        ended = token in self.tokenizer.stop_ids
        text = sequence.held + ("" if ended else sequence.decoder.push(token))
        finish: FinishReason | None = None
        if ended:
            finish = "end_of_text"
        elif len(sequence.generated) >= limits.max_tokens:
            finish = "length"
        elif self.model.longest is not None and length >= self.model.longest:
            finish = "context"
        if finish is not None:
            text += sequence.decoder.flush()
        found = [place for stop in limits.stop if (place := text.find(stop)) >= 0]
        if found:
            return "stop", text[: min(found)]
        keep = 0 if finish else _beginning_of_stop(text, limits.stop)
        sequence.held = text[len(text) - keep :]
        return finish, text[: len(text) - keep]

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
        fitted = self._fit(prompt, Limits())
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


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, short of the whole of any."""
    first, last = min(prompts), max(prompts)  # in sorted order, all others share what these two do
    most = min(map(len, prompts)) - 1
    return next((n for n, (a, b) in enumerate(zip(first[:most], last, strict=False)) if a != b), most)


def _log_probability(raw: np.ndarray, token: int) -> float:
    """ln softmax(raw)[token], summed in float64."""
    shifted = raw - raw.max()
    return float(shifted[token]) - float(np.log(np.exp(shifted).sum(dtype=np.float64)))


def _beginning_of_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
