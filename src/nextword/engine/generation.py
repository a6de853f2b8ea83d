"""One call of `Engine.stream`: its completions, a token of each at a time, and everything that belongs to them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..base import UsageError
from ..text import StreamDecoder
from .checks import shown, whole
from .results import Alternative, FinishReason, Step, Timings
from .sampling import Sampling, adjust, choose, fresh_seed

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Limits:
    """When a completion ends. Raises UsageError for values that make no sense."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    truncate: str | None = None  # "left" cuts a prompt that does not fit; None refuses it

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole("max_tokens", self.max_tokens, 1))
        for stop in self.stop:
            if not isinstance(stop, str):
                raise UsageError(f"a stop string is {shown(stop)}; it takes text")
            if not stop:
                raise UsageError("a stop string is empty; it would end every completion before its first token")
        if self.truncate not in (None, "left"):
            raise UsageError(f"truncate is {shown(self.truncate)}; it takes 'left'")


@dataclass
class _Sequence:
    """One completion under way: the `sample`-th of its prompt."""

    choice: int
    sample: int
    seed: int
    prompt: tuple[int, ...]
    decoder: StreamDecoder
    generated: list[int] = field(default_factory=list)
    held: str = ""  # decoded, but it may be the beginning of a stop string


class Generation(Iterator[Step]):
    """Completions under way: an iterator over their steps, each computed when it is asked for.

    `prompts` are the token ids as they are read, after any cut, and `seeds` what each prompt's completions are drawn
    with; both have an entry a prompt. `steps` are those drawn so far, a list a completion (`n` of the first prompt,
    then `n` of the second, ...), and `timings` end with the last of them. Nothing of it is shared: generations of one
    model may be interleaved, or run in a thread each.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        sampling: Sampling,
        limits: Limits,
        alternatives: int,
    ) -> None:
        self.prompts = tuple(prompts)
        self.seeds = tuple(fresh_seed() if sampling.seed is None else sampling.seed for _ in self.prompts)
        self.n = n
        self.steps: list[list[Step]] = [[] for _ in range(n * len(self.prompts))]
        self.timings = Timings(0, 0.0, 0, 0.0)
        self._engine, self._sampling, self._limits, self._alternatives = engine, sampling, limits, alternatives
        self._running = self._run()

    def __next__(self) -> Step:
        return next(self._running)

    def close(self) -> None:
        """End all completions where they are, and give their memory back."""
        self._running.close()

    @property
    def finish_reasons(self) -> tuple[FinishReason | None, ...]:
        """Why each completion ended; None for one that has not."""
        return tuple(steps[-1].finish if steps else None for steps in self.steps)

    @torch.inference_mode()
    def _run(self) -> Generator[Step]:
        if not self.prompts:
            return
        model, began = self._engine.model, time.perf_counter()
        running = self._sequences()
        room = max(map(len, self.prompts)) + self._limits.max_tokens
        room = min(model.longest or room, room)
        self._engine.check_memory(len(running), room)
        logits, state = self._engine.prefill([sequence.prompt for sequence in running], room)
        prefilled = time.perf_counter()
        read = sum(map(len, set(self.prompts)))
        while running:
            steps = self._draw(running, logits)
            for step in steps:
                self.steps[step.choice].append(step)
            drawn = self.timings.generated_tokens + len(steps)
            self.timings = Timings(read, prefilled - began, drawn, time.perf_counter() - prefilled)
            yield from steps
            rows = [row for row, step in enumerate(steps) if step.finish is None]
            if len(rows) < len(running):
                running = [running[row] for row in rows]
                state = state.select(rows) if running else state
            if running:
                tokens = torch.tensor([[sequence.generated[-1]] for sequence in running], device=model.device)
                logits = model.logits(model.hidden(tokens, state)[:, -1])

    def _sequences(self) -> list[_Sequence]:
        return [
            _Sequence(place * self.n + sample, sample, seed, prompt, self._engine.tokenizer.stream())
            for place, (prompt, seed) in enumerate(zip(self.prompts, self.seeds, strict=True))
            for sample in range(self.n)
        ]

    def _draw(self, running: list[_Sequence], logits: Tensor) -> list[Step]:
        """The next token of every sequence."""
        rows = logits.numpy(force=True)
        return [self._step(sequence, row) for sequence, row in zip(running, rows, strict=True)]

    def _step(self, sequence: _Sequence, raw: np.ndarray) -> Step:
        sampling, tokenizer = self._sampling, self._engine.tokenizer
        position = len(sequence.prompt) + len(sequence.generated)
        adjusted = adjust(raw, sampling, sequence.prompt, sequence.generated)
        token, drawn = choose(adjusted, sampling, sequence.seed, sequence.sample, position)
        alternatives: tuple[Alternative, ...] = ()
        if self._alternatives:
            alternatives = self._engine.alternatives(raw, adjusted, sampling, self._alternatives)
        sequence.generated.append(token)
        finish, text = self._text_and_finish(sequence, token, position + 1)
        return Step(
            choice=sequence.choice,
            position=position,
            id=token,
            token=tokenizer.token_text(token),
            text=text,
            logprob=_log_probability(raw, token),
            drawn=drawn,
            alternatives=alternatives,
            finish=finish,
        )

    def _text_and_finish(self, sequence: _Sequence, token: int, length: int) -> tuple[FinishReason | None, str]:
        """Text that may be shown now, and why the sequence ends here, if it does."""
        limits, longest = self._limits, self._engine.model.longest
        ended = token in self._engine.tokenizer.stop_ids
        text = sequence.held + ("" if ended else sequence.decoder.push(token))
        finish: FinishReason | None = None
        if ended:
            finish = "end_of_text"
        elif len(sequence.generated) >= limits.max_tokens:
            finish = "length"
        elif longest is not None and length >= longest:
            finish = "context"
        if finish is not None:
            text += sequence.decoder.flush()
        found = [place for stop in limits.stop if (place := text.find(stop)) >= 0]
        if found:
            return "stop", text[: min(found)]
        keep = 0 if finish else _beginning_of_stop(text, limits.stop)
        sequence.held = text[len(text) - keep :]
        return finish, text[: len(text) - keep]


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
