"""Answers, their scores and costs, before statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .design import Condition
from .task import Encoded, Gold, Item, Likelihood, LogprobRequest, Task


@dataclass(frozen=True)
class Answer:
    """The answer to one item under one condition."""

    item: Item
    shots: int  # in the prompt
    requests: tuple[LogprobRequest, ...]
    encoded: tuple[Encoded, ...]
    likelihoods: tuple[Likelihood, ...] = ()
    written: str | None = None  # generated text
    choices: tuple[str, ...] = ()
    gold: Gold = 0
    prediction: int | str = 0
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)  # of a generated answer, by scorer
    choice_scores: tuple[float, ...] = ()  # per choice; `prediction` has the highest

    @property
    def logprobs(self) -> list[float]:
        """ln p of each choice."""
        return [likelihood.logprob for likelihood in self.likelihoods]

    def choosing(self, scores: Sequence[float]) -> Answer:
        """The answer with the choice of the highest score."""
        best = int(np.argmax(scores))
        return replace(self, prediction=best, score=float(best == self.gold), choice_scores=tuple(map(float, scores)))


def scores_of(answer: Answer, choice_scoring: str, premise: Sequence[float] = ()) -> list[float]:
    """A score for each choice; the highest wins.

    raw: ln p. chars, bytes, tokens: ln p over the choice's length. pmi: ln p(choice | prompt) - ln p(choice | premise),
    given in `premise` (Holtzman et al. 2021, 2104.08315, eq. 3).
    """
    logprobs = answer.logprobs
    if choice_scoring == "raw":
        return logprobs
    if choice_scoring == "pmi":
        return [own - before for own, before in zip(logprobs, premise, strict=True)]
    sizes = {
        "chars": [len(choice) for choice in answer.choices],
        "bytes": [len(choice.encode()) for choice in answer.choices],
        "tokens": [len(likelihood.logprobs) for likelihood in answer.likelihoods],
    }[choice_scoring]
    return [own / max(1, size) for own, size in zip(logprobs, sizes, strict=True)]


def answer_choice(
    task: Task, item: Item, shots: int, asked: Sequence[LogprobRequest], encoded: Sequence[Encoded],
    likelihoods: Sequence[Likelihood], choice_scoring: str, premise: Sequence[float] = (),
) -> Answer:  # fmt: skip
    """An answer among choices, chosen by `choice_scoring`; `premise`: ln p of each choice after it, for pmi."""
    answer = Answer(
        item, shots, tuple(asked), tuple(encoded), tuple(likelihoods), choices=task.format.choices(item.values),
        gold=task.format.gold(item.values),
    )  # fmt: skip
    return answer.choosing(scores_of(answer, choice_scoring, premise))


def answer_text(
    task: Task, item: Item, shots: int, asked: Sequence[LogprobRequest], encoded: Sequence[Encoded], written: str
) -> Answer:
    """A generated answer with the scores of the task's scorers; the first one's is the score."""
    gold = task.format.gold(item.values)
    assert not isinstance(gold, int)
    scores = {scorer.name: scorer.function(written, gold, item.values) for scorer in task.scorers}
    return Answer(
        item, shots, tuple(asked), tuple(encoded), written=written, gold=gold, prediction=written.strip(),
        score=scores[task.scorers[0].name], scores=scores,
    )  # fmt: skip


@dataclass(frozen=True)
class ConditionResult:
    """One condition and its answers, in the order of the items."""

    condition: Condition
    answers: tuple[Answer, ...]

    @property
    def scores(self) -> np.ndarray:
        """The score of every item, (items,)."""
        return np.array([answer.score for answer in self.answers])

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the items: accuracy, or each scorer's."""
        if self.answers[0].choices:
            return {"acc": float(self.scores.mean())}
        return {
            name: float(np.mean([answer.scores[name] for answer in self.answers])) for name in self.answers[0].scores
        }


@dataclass(frozen=True)
class Cost:
    """The cost of an evaluation: tokens to read, also without prefix sharing (`alone`), and most tokens to generate.

    Of `tokens`, `embedded` have already been read to find similar shots, which the prompts depend on.
    """

    requests: int
    tokens: int
    alone: int
    generated: int
    longest: int  # tokens of the longest prompt with its answer
    context: int | None
    seconds: float  # s, at speeds measured on this machine; 0 if not measured
    known: int = 0  # requests already in the store
    embedded: int = 0
    unit: str = "tokens"  # or characters, for a served model


@dataclass(frozen=True)
class Notes:
    """Notes for the user about the data and the prompts."""

    reading: tuple[str, ...] = ()
    repeated: int = 0  # scored items with the same text as an example in the pool
    split_tokens: tuple[tuple[str, str], ...] = ()  # answers off a token boundary: tokens before and after
    short_of_shots: int = 0  # prompts that lost shots to fit
    warnings: tuple[str, ...] = ()  # about the task (Task.warnings) and its shots
    chat: tuple[str, ...] = ()  # about models whose chat template is not used

    def lines(self, most: int) -> list[str]:
        """The notes as lines, with at most `most` unreadable rows and split tokens."""
        lines = [*self.warnings, *self.reading[:most]]
        if len(self.reading) > most:
            lines.append(f"... and {len(self.reading) - most:,} more such rows")
        if self.repeated:
            lines.append(f"{self.repeated:,} scored items have the same text as an example in the few-shot pool")
        lines += [
            f"an answer does not start on a token boundary: the prompt's last token is {last!r}, the answer's first"
            f" {first!r}. End the template before a space or a newline"
            for last, first in self.split_tokens[:most]
        ]
        lines += self.chat
        if self.short_of_shots:
            lines.append(f"{self.short_of_shots:,} prompts were longer than the context, so shots were dropped")
        return lines


@dataclass(frozen=True)
class Collected:
    """All answers of an evaluation, before statistics."""

    task: Task
    items: tuple[Item, ...]
    conditions: tuple[ConditionResult, ...]
    choice_scoring: str
    costs: tuple[Cost, ...]
    notes: Notes
    seconds: float
    read: int  # tokens read by the models in this run
    shared_shots: bool = True  # all items share a seed's shots; False with --fewshot-sampler similar
    calibrate: tuple[str, ...] = ()  # requested calibrations
