"""How probable a model holds continuations: requests share what their texts have in common.

All texts are walked in sorted order as one tree of tokens. The state of the model (a transformer's keys and values, a
recurrent net's hidden state) stands at a node of that tree; what hangs below it is read some hundred tokens at a
time, as many branches as fit, and the state moves on to where the next branches begin. So no token is computed
twice, whichever way texts share their beginnings, and logits exist only where a continuation is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import UsageError
from ..models import Model, Recurrent, Tree
from ..text import Tokenizer
from .task import Encoded, Ids, Likelihood, Request

AT_ONCE = {"cpu": 256, "cuda": 4096}  # tokens of a tree read in one pass
_ROWS = 64  # logits formed at a time: 64 x 50,000 numbers are 13 MB


@dataclass
class Work:
    """What scoring took: tokens through the model."""

    forwarded: int = 0


def encode(request: Request, tokenizer: Tokenizer, tokens: Callable[[str], list[int]] | None = None) -> Encoded:
    """Tokens of a request. Spaces that end the context belong to the continuation, whose tokens begin with one.

    The whole text is tokenized (by `tokens`, or else as plain text), and cut after as many tokens as the context alone
    has. Raises UsageError for an empty continuation.
    """
    tokens = tokens or tokenizer.encode
    context, continuation = request.context, request.continuation
    bare = context.rstrip()
    if context:
        context, continuation = bare, context[len(bare) :] + continuation
    if not continuation:
        raise UsageError("a choice is empty: there is nothing whose probability could be asked")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.stop_ids, default=None)
    if not context:
        if start is None:
            raise UsageError("the prompt is empty and the model has no token that begins a text. Give it some text")
        return Encoded((start,), tuple(tokens(continuation)))
    head, whole = tokens(context), tokens(context + continuation)
    apart = whole[: len(head)] != head
    cut = min(len(head), len(whole) - 1)
    return Encoded(begun(whole[:cut], tokenizer), tuple(whole[cut:]), apart)


def begun(tokens: Sequence[int], tokenizer: Tokenizer) -> Ids:
    """A text's tokens behind the one that begins texts, where the model expects it and no chat template wrote it."""
    if not tokenizer.adds_bos or tokenizer.bos_id is None or tokenizer.bos_id in tokens[:1]:
        return tuple(tokens)
    return (tokenizer.bos_id, *tokens)


def windows(tokens: Sequence[int], start: int, context: int) -> list[Encoded]:
    """A text of any length as pieces that fit `context`, each token predicted once and from as much as fits.

    The first is predicted from `start` alone; each later piece sees, besides its own tokens, those before it.
    """
    first = tuple(tokens[:context])
    pieces = [Encoded((start,), first)] if first else []
    for begin in range(len(first), len(tokens), context):
        piece = tuple(tokens[begin : begin + context])
        before = tuple(tokens[begin + len(piece) - context - 1 : begin])
        pieces.append(Encoded(before, piece))
    return pieces


class Scorer:
    """Scores token requests with one model. `work` counts what it did."""

    def __init__(self, model: Model[Any], at_once: int | None = None) -> None:
        self.model = model
        self.at_once = at_once or AT_ONCE.get(model.device.type, AT_ONCE["cuda"])
        self.work = Work()

    def score(
        self, requests: Sequence[Encoded], seen: Callable[[int, Likelihood], None] | None = None
    ) -> list[Likelihood]:
        """The likelihoods, in the order of `requests`; `seen` is told each as soon as it is known."""
        found: dict[int, Likelihood] = {}
        for number, likelihood in self.stream(requests):
            found[number] = likelihood
            if seen is not None:
                seen(number, likelihood)
        return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def stream(self, requests: Sequence[Encoded]) -> Iterator[tuple[int, Likelihood]]:
        """Each request's number and likelihood as soon as it is known, in the order of their texts."""
        self._check(requests)
        order = _sorted(requests)
        texts, first = _texts([requests[n] for n in order])
        state = self.model.new_state(1)
        partial: dict[int, list[tuple[float, bool]]] = {}  # tokens of a text longer than one pass, already scored
        for branch in _passes(texts, first, self.at_once, state.back):
            self.work.forwarded += len(branch.tree)
            hidden = self.model.read_tree(branch.tree, state, branch.keep)
            yield from self._finished(requests, order, branch, hidden, partial)

    def _finished(
        self, requests: Sequence[Encoded], order: Sequence[int], branch: _Branches, hidden: Tensor,
        partial: dict[int, list[tuple[float, bool]]],
    ) -> Iterator[tuple[int, Likelihood]]:  # fmt: skip
        """Score what this pass has read of each text; a text read to its end is done."""
        wanted: list[tuple[int, int, int]] = []  # (text, node, token that should follow)
        for text, path in branch.paths.items():
            request = requests[order[text]]
            first = len(request.context) - 1 - branch.start  # nodes of `path` count from the state's end
            done = len(partial.get(text, ()))
            for step in range(done, len(request.continuation)):
                if first + step < len(path):
                    wanted.append((text, path[first + step], request.continuation[step]))
        for (text, _, _), logprob, best in zip(wanted, *self._look(hidden, wanted), strict=True):
            partial.setdefault(text, []).append((logprob, best))
        for text in branch.paths:
            if text < branch.end:
                tokens = partial.pop(text)
                yield order[text], Likelihood(tuple(p for p, _ in tokens), all(best for _, best in tokens))

    def _look(self, hidden: Tensor, wanted: Sequence[tuple[int, int, int]]) -> tuple[list[float], list[bool]]:
        """ln p of each wanted token, and whether it is the likeliest; logits of a node are formed once."""
        nodes = sorted({node for _, node, _ in wanted})
        row_of = {node: row for row, node in enumerate(nodes)}
        logprobs: list[float] = [0.0] * len(wanted)
        best: list[bool] = [False] * len(wanted)
        for start in range(0, len(nodes), _ROWS):
            logits = self.model.logits(hidden[nodes[start : start + _ROWS]])  # (rows, vocabulary)
            whole, top = logits.logsumexp(-1), logits.argmax(-1)
            here = [n for n, (_, node, _) in enumerate(wanted) if start <= row_of[node] < start + _ROWS]
            rows = torch.tensor([row_of[wanted[n][1]] - start for n in here], device=logits.device)
            tokens = torch.tensor([wanted[n][2] for n in here], device=logits.device)
            values = (logits[rows, tokens] - whole[rows]).tolist()
            firsts = (top[rows] == tokens).tolist()
            for n, value, first in zip(here, values, firsts, strict=True):
                logprobs[n], best[n] = value, first
        return logprobs, best

    def _check(self, requests: Sequence[Encoded]) -> None:
        longest = self.model.longest
        for request in requests:
            size = len(request.context) + len(request.continuation) - 1
            if longest is not None and size > longest:
                raise UsageError(
                    f"a prompt has {size} tokens; the model's context holds {longest}. Use fewer or shorter shots"
                )


def tokens_to_read(requests: Sequence[Encoded], model: Model[Any], at_once: int) -> int:
    """Tokens that `model` reads for these requests, `at_once` at a time: the passes of a Scorer, without the model."""
    texts, first = _texts([requests[n] for n in _sorted(requests)])
    state = _Places(anywhere=not isinstance(model, Recurrent))
    read = 0
    for branch in _passes(texts, first, at_once, state.back):
        read += len(branch.tree)
        state.move(len(branch.keep))
    return read


class _Places:
    """How many tokens a state has seen, and to where it can return: see `State.back`."""

    def __init__(self, anywhere: bool) -> None:
        self.length, self.anywhere = 0, anywhere
        self.past: list[int] = []  # what a recurrent net can return to

    def move(self, count: int) -> None:
        if count:
            self.past.append(self.length)
        self.length += count

    def back(self, length: int) -> int:
        if self.anywhere:
            self.length = min(self.length, length)
        while self.length > length:
            self.length = self.past.pop()
        return self.length


def _sorted(requests: Sequence[Encoded]) -> list[int]:
    """The requests' numbers in the order of their texts, in which they are read."""
    return sorted(range(len(requests)), key=lambda n: requests[n].context + requests[n].continuation)


def _texts(requests: Sequence[Encoded]) -> tuple[list[Ids], list[int]]:
    """What is read of each request, and where what is read begins to be of interest."""
    return (
        [request.context + request.continuation[:-1] for request in requests],
        [len(request.context) - 1 for request in requests],
    )


def _passes(
    texts: Sequence[Ids], first: Sequence[int], at_once: int, back: Callable[[int], int]
) -> Iterator[_Branches]:
    """The trees to read, one after the other, each from where `back`, the state's own, could return to."""
    held: Ids = ()  # the tokens that the state has seen
    place = done = 0  # `done`: tokens already scored of a text longer than one pass
    while place < len(texts):
        held = held[: back(min(common(held, texts[place]), first[place] + done))]
        branch = _Branches(texts, first, place, len(held), at_once)
        yield branch  # and read it
        held = held + tuple(branch.tree.tokens[node] for node in branch.keep)
        done = max(0, len(held) - first[place]) if branch.end == place else 0
        place = branch.end


class _Branches:
    """The tree that one pass reads: texts[place:end], as far as they go beyond the state's `start` tokens."""

    def __init__(self, texts: Sequence[Ids], first: Sequence[int], place: int, start: int, room: int) -> None:
        self.start, self.tree = start, Tree()
        self.paths: dict[int, list[int]] = {}  # text → its nodes, from the state's end on
        before: Ids = ()
        path: list[int] = []
        self.end = place
        while self.end < len(texts):
            text = texts[self.end][start:]
            if self.end > place and common(texts[place][:start], texts[self.end][: first[self.end]]) < start:
                break  # it does not go on from the state, or needs what lies before it
            shared = common(before, text)
            left = room - len(self.tree)
            if len(text) - shared > left:
                if not self.paths and left > 0:  # longer than a pass: its beginning alone
                    self.paths[self.end] = self.tree.add(-1, text[:left])
                break
            path = path[:shared] + self.tree.add(path[shared - 1] if shared else -1, text[shared:])
            self.paths[self.end], before = path, text
            self.end += 1
        self.keep = self._keep(texts, first, place)

    def _keep(self, texts: Sequence[Ids], first: Sequence[int], place: int) -> list[int]:
        """The path on which the next text goes on."""
        if self.end == place:
            return self.paths[place]
        if self.end == len(texts):
            return []
        last = self.end - 1
        shared = min(common(texts[last], texts[self.end]), first[self.end])
        return self.paths[last][: max(0, shared - self.start)]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
