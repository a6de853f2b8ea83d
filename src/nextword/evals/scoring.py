"""How probable continuations are to a model: what is asked, in tokens, and the engine's requests for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from ..base import UsageError
from ..engine.request import ScoreRequest
from ..engine.results import Score
from ..text import Tokenizer
from .task import Encoded, Ids, Likelihood, LogprobRequest

CONTINUATIONS = 64  # of a request, so that answers come before all of very many have been read
_STRETCH, _APART = 256, 16  # of sorted requests; neighbours among them are not read in the same step


def encode(request: LogprobRequest, tokenizer: Tokenizer, tokens: Callable[[str], list[int]] | None = None) -> Encoded:
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
    split_token = whole[: len(head)] != head
    cut = min(len(head), len(whole) - 1)
    return Encoded(begun(whole[:cut], tokenizer), tuple(whole[cut:]), split_token)


def begun(tokens: Sequence[int], tokenizer: Tokenizer) -> Ids:
    """A text's tokens behind the one that begins texts, where the model expects it and no chat template wrote it."""
    if not tokenizer.adds_bos or tokenizer.bos_id is None or tokenizer.bos_id in tokens[:1]:
        return tuple(tokens)
    return (tokenizer.bos_id, *tokens)


def score_requests(asked: Iterable[Encoded]) -> list[ScoreRequest]:
    """One for each context, with what is asked behind it, in the order in which they are to run.

    They are sorted, so that what texts share is still there when the next one needs it, but every 16th of a stretch
    runs before those in between: a text waits for a step when another one that shares a little more with it is being
    read (the sentiment task with shots filled 82 of 256 tokens of a step when sorted, 238 so).
    """
    distinct = sorted({(request.context, request.continuation) for request in asked})
    requests = []
    for context, pairs in groupby(distinct, lambda pair: pair[0]):
        continuations = tuple(continuation for _, continuation in pairs)
        for start in range(0, len(continuations), CONTINUATIONS):
            requests.append(ScoreRequest(context, continuations[start : start + CONTINUATIONS]))
    stretches = (requests[start : start + _STRETCH] for start in range(0, len(requests), _STRETCH))
    return [request for stretch in stretches for first in range(_APART) for request in stretch[first::_APART]]


def likelihood(score: Score) -> Likelihood:
    """What the evaluation keeps of a score."""
    return Likelihood(score.logprobs, all(rank == 1 for rank in score.ranks))
