"""Scoring continuations: tokenization, and the engine's requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from ..base import UsageError
from ..engine.request import ScoreRequest
from ..engine.results import Score
from ..text import Tokenizer, begun
from .task import Encoded, Likelihood, LogprobRequest

CONTINUATIONS = 64  # per request, so that results arrive before a very large request is done
_STRETCH, _APART = 256, 16  # sorted requests; neighbours are not read in the same step


def encode(request: LogprobRequest, tokenizer: Tokenizer, tokens: Callable[[str], list[int]] | None = None) -> Encoded:
    """Tokenize a request. Spaces at the end of the context belong to the continuation, whose tokens start with one.

    The complete text is tokenized (by `tokens`, or as plain text), and split after as many tokens as the context alone
    has. Raises UsageError for an empty continuation.
    """
    tokens = tokens or tokenizer.encode
    context, continuation = request.context, request.continuation
    bare = context.rstrip()
    if context:
        context, continuation = bare, context[len(bare) :] + continuation
    if not continuation:
        raise UsageError("a choice is empty, so it has no probability")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.stop_ids, default=None)
    if not context:
        if start is None:
            raise UsageError("the prompt is empty and the model has no bos token. Give it some text")
        return Encoded((start,), tuple(tokens(continuation)))
    head, whole = tokens(context), tokens(context + continuation)
    split_token = whole[: len(head)] != head
    cut = min(len(head), len(whole) - 1)
    return Encoded(tuple(begun(tokenizer, whole[:cut])), tuple(whole[cut:]), split_token)


def score_requests(asked: Iterable[Encoded]) -> list[ScoreRequest]:
    """One request per context, with its continuations, in the order to run.

    They are sorted, so that shared prefixes are still cached when needed, but every 16th of a stretch runs before those
    in between: a text waits for a step while another one with a longer shared prefix is being read (the sentiment task
    with shots filled 82 of 256 tokens of a step when sorted, and 238 in this order).
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
    """The evaluation's likelihood from a score."""
    return Likelihood(score.logprobs, all(rank == 1 for rank in score.ranks))
