"""What models answered, how right that was, and what asking cost, before statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .design import Condition
from .task import Encoded, Gold, Item, Likelihood, LogprobRequest, Task


@dataclass(frozen=True)
class Answer:
    """One item under one condition."""

    item: Item
    shots: int  # in the prompt
    requests: tuple[LogprobRequest, ...]
    encoded: tuple[Encoded, ...]
    likelihoods: tuple[Likelihood, ...] = ()
    written: str | None = None  # by the model
    choices: tuple[str, ...] = ()
    gold: Gold = 0
    prediction: int | str = 0
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)  # of a generated answer, by each scorer
    choice_scores: tuple[float, ...] = ()  # of each choice, as `prediction` was chosen by: the highest is taken

    @property
    def logprobs(self) -> list[float]:
        """ln p of each choice."""
        return [likelihood.logprob for likelihood in self.likelihoods]

    def choosing(self, scores: Sequence[float]) -> Answer:
        """The answer when the choice of highest score is taken."""
        best = int(np.argmax(scores))
        return replace(self, prediction=best, score=float(best == self.gold), choice_scores=tuple(map(float, scores)))


def scores_of(answer: Answer, choice_scoring: str, premise: Sequence[float] = ()) -> list[float]:
    """A score for each choice; the highest is chosen.

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
    """An answer among choices, chosen by `choice_scoring`; `premise` are ln p of each choice behind it, for pmi."""
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
        """Means over the items: the accuracy of the choices made, or each scorer's."""
        if self.answers[0].choices:
            return {"acc": float(self.scores.mean())}
        return {
            name: float(np.mean([answer.scores[name] for answer in self.answers])) for name in self.answers[0].scores
        }


@dataclass(frozen=True)
class Cost:
    """What an evaluation costs: tokens to read, the same without prefix sharing (`alone`), tokens to generate at most.

    Of `tokens`, `embedded` were read already, to find similar shots: without these no prompt is known.
    """

    requests: int
    tokens: int
    alone: int
    generated: int
    longest: int  # tokens of the longest prompt with its answer
    context: int | None
    seconds: float  # s, at speeds measured on this machine; 0 if not measured
    known: int = 0  # requests that the store answers
    embedded: int = 0
    unit: str = "tokens"  # or characters, of a served model


@dataclass(frozen=True)
class Notes:
    """What a user should know about the data and the prompts."""

    reading: tuple[str, ...] = ()
    repeated: int = 0  # scored items whose text an example in the pool repeats
    split_tokens: tuple[tuple[str, str], ...] = ()  # answers off a token boundary: last token before, first after
    short_of_shots: int = 0  # prompts that lost shots to fit
    warnings: tuple[str, ...] = ()  # about the task (Task.warnings) and about its shots
    chat: tuple[str, ...] = ()  # about models whose chat template is not used

    def lines(self, most: int) -> list[str]:
        """All of it in words, with at most so many of the rows that could not be read and of the split tokens."""
        lines = [*self.warnings, *self.reading[:most]]
        if len(self.reading) > most:
            lines.append(f"... and {len(self.reading) - most:,} more such rows")
        if self.repeated:
            lines.append(f"{self.repeated:,} scored items have the same text as an example that shots are drawn from")
        lines += [
            f"an answer does not start on a token boundary: the prompt's last token is {last!r}, the answer's first"
            f" {first!r}. End the template before a space or a newline"
            for last, first in self.split_tokens[:most]
        ]
        lines += self.chat
        if self.short_of_shots:
            lines.append(f"{self.short_of_shots:,} prompts were longer than the context and lost whole shots")
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
    shared_shots: bool = True  # a seed's shots are one set for all items; not so with --fewshot-sampler similar
    calibrate: tuple[str, ...] = ()  # the corrections that were asked for
