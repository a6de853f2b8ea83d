"""Sequences, the scheduler's unit: one sample of a completion, one text to score, or one prompt for its logits."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..backend import Output
from ..base import RunError
from ..text import Tokenizer
from .pages import Page
from .results import Alternative, FinishReason, Token
from .sampler import Draw, SampleRow, Uniforms, likeliest_logprobs

if TYPE_CHECKING:
    from .handles import CompletionHandle, Handle, HiddenHandle, LogitsHandle, ScoreHandle
    from .structure import Matcher


@dataclass(frozen=True)
class Target:
    """A token to score: number `place` of a continuation, predicted from the output at `position`."""

    position: int
    token: int
    continuation: int
    place: int


class Sequence:
    """Tokens that go through the model once, and the pages that hold their keys and values.

    The output at `tokens[first_row]` is the first one needed; anything before may come from the prefix cache.
    """

    def __init__(self, handle: Handle, tokens: Tokens[int], first_row: int) -> None:
        self.handle = handle
        self.tokens = list(tokens)
        self.checkpoints = [first_row]  # where a recurrent state is saved for sharing
        self.pages: list[Page] = []
        self.snapshots: list[tuple[int, Page]] = []  # position and page of states still to be saved
        self.followers: list[Sequence] = []  # of the same request, waiting for this one's prefix
        self.computed = 0
        self._first_row = first_row

    @property
    def first_row(self) -> int:
        return self._first_row

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is left to compute."""
        return False

    def start(self, pages: list[Page], computed: int) -> None:
        """Start, with the first `computed` tokens already in `pages`."""
        self.pages, self.computed = pages, computed
        self.handle.started(self, computed)

    def stop(self) -> None:
        """Stop; what was computed may remain in the prefix cache."""
        self.pages, self.snapshots, self.computed = [], [], 0

    def draft(self, most: int) -> list[int]:
        """Up to `most` drafted tokens."""
        return []

    def logit_positions(self, start: int, end: int) -> range:
        """The positions in [start, end) whose logits are needed: the newest token's and those of drafts."""
        return range(max(start, len(self.tokens) - 1), end)

    def hidden_positions(self, start: int, end: int) -> range:
        """The positions in [start, end) whose hidden states are needed."""
        return range(0)

    def targets(self, start: int, end: int) -> list[Target]:
        """The tokens to score that are predicted at positions in [start, end)."""
        return []

    def receive(self, start: int, output: Output) -> None:
        """Take the outputs for `logit_positions`, `targets` and `hidden_positions` of a chunk starting at `start`."""


class Prompt(Sequence):
    """A prompt, for the raw logits of its next token."""

    handle: LogitsHandle

    def __init__(self, handle: LogitsHandle, tokens: Tokens[int]) -> None:
        super().__init__(handle, tokens, len(tokens) - 1)

    def receive(self, start: int, output: Output) -> None:
        for row in output.logits:
            self.handle.logits = row.copy()


class Read(Sequence):
    """A text, for the hidden states after all of its tokens."""

    handle: HiddenHandle

    def __init__(self, handle: HiddenHandle, tokens: Tokens[int]) -> None:
        super().__init__(handle, tokens, 0)

    def logit_positions(self, start: int, end: int) -> range:
        return range(0)

    def hidden_positions(self, start: int, end: int) -> range:
        return range(start, end)

    def receive(self, start: int, output: Output) -> None:
        self.handle.read(start, output.hidden)


class Scored(Sequence):
    """A context followed by one of its continuations.

    The first sequence also scores the first token of every other continuation, which is all of a one-token one.
    """

    handle: ScoreHandle

    def __init__(self, handle: ScoreHandle, number: int) -> None:
        context, continuations = handle.request.context, handle.request.continuations
        own, last = continuations[number], len(context) - 1
        first = number == 0
        self._top = handle.request.top_logprobs if first else 0
        super().__init__(handle, (*context, *own[:-1]), last if first else last + 1)
        if first and any(len(continuation) > 1 for continuation in continuations[1:]):
            self.checkpoints.append(len(context))
        firsts = enumerate(continuations) if first else ()
        self._targets = [Target(last, continuation[0], index, 0) for index, continuation in firsts]
        self._targets += [Target(last + place, token, number, place) for place, token in enumerate(own) if place]

    def logit_positions(self, start: int, end: int) -> range:
        if not self._top:
            return range(0)
        return range(max(start, self._first_row), end)

    def targets(self, start: int, end: int) -> list[Target]:
        return [target for target in self._targets if start <= target.position < end]

    def receive(self, start: int, output: Output) -> None:
        first = max(start, self._first_row) - self._first_row
        for place, row in enumerate(output.logits, first):
            self.handle.top[place] = likeliest_logprobs(row, self._top)
        targets = self.targets(start, start + len(self.tokens))[: len(output.ranks)]
        for target, logprob, rank in zip(targets, output.logprobs.tolist(), output.ranks.tolist(), strict=True):
            self.handle.scored(target, logprob, rank)


class Sample(Sequence):
    """One completion in progress: number `sample` of its request."""

    handle: CompletionHandle

    def __init__(self, handle: CompletionHandle, sample: int, tokenizer: Tokenizer, matcher: Matcher | None) -> None:
        super().__init__(handle, handle.prompt, len(handle.prompt) - 1)
        self.sample, self.prompt_length, self._tokenizer, self.matcher = sample, len(handle.prompt), tokenizer, matcher
        self._decoder = tokenizer.stream()
        self._held = ""  # decoded, but possibly the start of a stop string
        self._uniforms = Uniforms(handle.seed, sample)
        self._lookup = PromptLookup(self.tokens) if handle.request.speculate else None
        self.finish: FinishReason | None = None

    @property
    def first_row(self) -> int:
        return len(self.tokens) - 1

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def fault(self) -> RunError | None:
        """Why no token can be sampled, if the structure cannot be continued."""
        return None if self.matcher is None else self.matcher.error

    @property
    def decoding(self) -> bool:
        return len(self.tokens) > self.prompt_length and self.computed == len(self.tokens) - 1

    def draft(self, most: int) -> list[int]:
        if self._lookup is None:
            return []
        request, longest = self.handle.request, self.handle.context
        left = request.stop.max_tokens - (len(self.tokens) - self.prompt_length) - 1
        if longest is not None:
            left = min(left, longest - len(self.tokens) - 1)
        return self._lookup.draft(max(0, min(most, left, request.speculate)))

    def row(self) -> SampleRow:
        """How to sample the next token."""
        request, position = self.handle.request, len(self.tokens)
        sampling = request.sampling
        plain = sampling.neutral_logits
        return SampleRow(
            sampling,
            uniform=0.0 if sampling.greedy else self._uniforms.at(position),
            prompt=() if plain else self.tokens[: self.prompt_length],
            generated=() if plain else self.generated,
            allowed=None if self.matcher is None else self.matcher.mask(),
            top_logprobs=request.top_logprobs,
            kept_mass=request.kept_mass,
        )

    def accept(self, draw: Draw) -> Token:
        """Append a sampled token; `finish` is set if it was the last."""
        position, tokenizer = len(self.tokens), self._tokenizer
        self.tokens.append(draw.token)
        if self.matcher is not None:
            self.matcher.accept(draw.token)
        if self._lookup is not None:
            self._lookup.append(draw.token)
        self.finish, text = self._text_and_finish(draw.token)
        return Token(
            sample_index=self.sample,
            position=position,
            id=draw.token,
            token=tokenizer.token_text(draw.token),
            text=text,
            logprob=draw.logprob,
            sampled_prob=draw.sampled_prob,
            alternatives=tuple(
                Alternative(top.id, tokenizer.token_text(top.id), top.probability, top.sampled_prob) for top in draw.top
            ),
            finish=self.finish,
            kept_mass=draw.kept_mass,
        )

    def _text_and_finish(self, token: int) -> tuple[FinishReason | None, str]:
        """Why the completion ends here, if it does, and the text that can be shown now."""
        stops = self.handle.request.stop.stop
        ended = token in self._tokenizer.stop_ids
        text = self._held + ("" if ended else self._decoder.push(token))
        finish = self._finish(ended)
        if finish is not None:
            text += self._decoder.flush()
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        if places:
            return "stop", text[: min(places)]
        keep = 0 if finish else _beginning_of_stop(text, stops)
        self._held = text[len(text) - keep :]
        return finish, text[: len(text) - keep]

    def _finish(self, ended: bool) -> FinishReason | None:
        longest = self.handle.context
        if ended:
            return "end_of_text"
        if self.matcher is not None and self.matcher.finished:
            return "stop"
        if len(self.tokens) - self.prompt_length >= self.handle.request.stop.max_tokens:
            return "length"
        if longest is not None and len(self.tokens) >= longest:
            return "context"
        return None


class PromptLookup:
    """Drafts the tokens that followed the last time the newest tokens occurred."""

    LONGEST, SHORTEST = 3, 2  # matching tokens

    def __init__(self, tokens: Tokens[int]) -> None:
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}  # where the latest continuation of these tokens starts
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        for size in range(self.SHORTEST, self.LONGEST + 1):
            if len(self._tokens) >= size:
                self._followed[tuple(self._tokens[-size:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        for size in range(self.LONGEST, self.SHORTEST - 1, -1):
            start = self._followed.get(tuple(self._tokens[-size:]))
            if start is not None:
                period = len(self._tokens) - start  # assume that repetition continues
                return [self._tokens[start + place % period] for place in range(most)]
        return []


def _beginning_of_stop(text: str, stops: Tokens[str]) -> int:
    """Length of the longest suffix of `text` that a stop string starts with."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
