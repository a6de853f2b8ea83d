"""What a model answered to an item, and how right that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .task import Encoded, Item, Likelihood, Request, Task

MEASURES = ("raw", "chars", "bytes", "tokens", "pmi")  # those that choose by likelihoods


@dataclass(frozen=True)
class Answer:
    """One item under one condition. `values` holds a number for each way to choose among the same likelihoods."""

    item: Item
    shots: int  # that stood in the prompt
    requests: tuple[Request, ...]
    encoded: tuple[Encoded, ...]
    likelihoods: tuple[Likelihood, ...] = ()
    written: tuple[str, ...] = ()  # what the model wrote, before filters
    choices: tuple[str, ...] = ()
    gold: int | str | Sequence[int] | Sequence[str] = 0
    prediction: int | str = 0
    values: Mapping[str, float] = ()  # type: ignore[assignment]
    choice_scores: tuple[float, ...] = ()  # of each choice, as `prediction` was chosen by: the highest is taken

    @property
    def logprobs(self) -> list[float]:
        """ln p of each choice."""
        return [found.logprob for found in self.likelihoods]

    def right(self, prediction: int | str) -> bool:
        """Whether `prediction` is the gold answer, or one of several."""
        return prediction in self.gold if isinstance(self.gold, list | tuple) else prediction == self.gold

    def choosing(self, scores: Sequence[float], name: str) -> Answer:
        """The answer when the choice of highest score is taken."""
        best = int(np.argmax(scores))
        values = {**dict(self.values), name: float(self.right(best))}
        return replace(self, prediction=best, values=values, choice_scores=tuple(map(float, scores)))


def scores_of(answer: Answer, measure: str, premise: Sequence[float] = ()) -> list[float]:
    """A score for each choice; the highest is chosen.

    raw: ln p. chars, bytes, tokens: ln p over the choice's length. pmi: ln p(choice | prompt) - ln p(choice | premise),
    given in `premise` (Holtzman et al. 2021, 2104.08315, eq. 3).
    """
    logprobs = answer.logprobs
    if measure == "raw":
        return logprobs
    if measure == "pmi":
        return [own - before for own, before in zip(logprobs, premise, strict=True)]
    sizes = {
        "chars": [len(choice) for choice in answer.choices],
        "bytes": [len(choice.encode()) for choice in answer.choices],
        "tokens": [len(found.logprobs) for found in answer.likelihoods],
    }[measure]
    return [own / max(1, size) for own, size in zip(logprobs, sizes, strict=True)]


def answer_choice(
    task: Task, item: Item, shots: int, asked: Sequence[Request], encoded: Sequence[Encoded],
    found: Sequence[Likelihood], measure: str, premise: Sequence[float] = (),
) -> Answer:  # fmt: skip
    """An answer among choices. `values` has every measure; pmi only with `premise`, ln p of each choice behind it.

    Chosen by `measure`, one of MEASURES.
    """
    answer = Answer(
        item, shots, tuple(asked), tuple(encoded), tuple(found),
        choices=tuple(task.form.choices(item.values)), gold=task.form.gold(item.values), values={},
    )  # fmt: skip
    for each in MEASURES:
        if each != "pmi" or premise:
            answer = answer.choosing(scores_of(answer, each, premise), each)
    return answer.choosing(scores_of(answer, measure, premise), "score")
