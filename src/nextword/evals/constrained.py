"""The choice that a model writes, greedily, where nothing but the choices may be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..base import UsageError
from ..text import Tokenizer
from .answers import Answer
from .asking import Asker, Question, Seen, Writing
from .task import Generation


def writings(asker: Asker, questions: Sequence[Question]) -> list[Writing]:
    """The prompt of each question, and how its answer is written.

    Raises UsageError where the choices of a question stand behind different prompts.
    """
    return [_writing(question, asker.model.tokenizer) for question in questions]


def choose(
    asker: Asker, questions: Sequence[Question], answers: Sequence[Answer], seed: int, seen: Seen
) -> list[Answer]:
    """The answers, each with the choice that was written."""
    wanted = writings(asker, questions)
    written = asker.texts(wanted, seed, seen)
    return [_chosen(answer, each[1].choices, written[each][0]) for answer, each in zip(answers, wanted, strict=True)]


def _writing(question: Question, tokenizer: Tokenizer) -> Writing:
    contexts = {each.context for each in question.encoded}
    if len(contexts) > 1:
        raise UsageError(
            f"the choices of row {question.item.place} stand behind different prompts, so the model cannot write one or"
            " another. Use --score raw"
        )
    [context] = contexts
    before = len(tokenizer.decode(list(context)))
    texts = tuple(tokenizer.decode([*context, *each.continuation])[before:] for each in question.encoded)
    longest = max(len(text.encode()) for text in texts)
    return context, Generation(until=(), max_tokens=longest + 1, choices=texts)


def _chosen(answer: Answer, choices: Sequence[str], written: str) -> Answer:
    scores = [float(choice == written) for choice in choices]
    return replace(answer.choosing(scores, "constrained").choosing(scores, "score"), written=(written,))
