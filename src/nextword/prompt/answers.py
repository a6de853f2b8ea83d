"""What a model answered to an item, and how right that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .task import Encoded, Item, Likelihood, Request, Task

MEASURES = ("raw", "chars", "bytes", "tokens", "pmi", "constrained")


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
    given in `premise` (Holtzman et al. 2021, 2104.08315, eq. 3). constrained: the choice that greedy decoding ends in
    when only the choices may be written.
    """
    logprobs = answer.logprobs
    if measure == "raw":
        return logprobs
    if measure == "pmi":
        return [own - before for own, before in zip(logprobs, premise, strict=True)]
    if measure == "constrained":
        best = constrained([each.continuation for each in answer.encoded], answer.likelihoods)
        return [float(number == best) for number in range(len(logprobs))]
    sizes = {
        "chars": [len(choice) for choice in answer.choices],
        "bytes": [len(choice.encode()) for choice in answer.choices],
        "tokens": [len(found.logprobs) for found in answer.likelihoods],
    }[measure]
    return [own / max(1, size) for own, size in zip(logprobs, sizes, strict=True)]


def constrained(continuations: Sequence[Sequence[int]], likelihoods: Sequence[Likelihood]) -> int:
    """The choice written by greedy decoding where nothing but the choices may be written.

    At each place the likeliest token that still leads to a choice is taken. A choice that another one continues is
    taken only if no longer one can be reached.
    """
    left = list(range(len(continuations)))
    place = 0
    while len(left) > 1:
        going = [number for number in left if len(continuations[number]) > place]
        if not going:
            break
        best = max(going, key=lambda number: likelihoods[number].logprobs[place])
        left = [number for number in going if continuations[number][place] == continuations[best][place]]
        place += 1
    return left[0]


def answer_choice(
    task: Task, item: Item, shots: int, asked: Sequence[Request], encoded: Sequence[Encoded],
    found: Sequence[Likelihood], measure: str, premise: Sequence[float] = (),
) -> Answer:  # fmt: skip
    """An answer among choices. `values` has every measure; pmi only with `premise`, ln p of each choice behind it."""
    answer = Answer(
        item, shots, tuple(asked), tuple(encoded), tuple(found),
        choices=tuple(task.form.choices(item.values)), gold=task.form.gold(item.values), values={},
    )  # fmt: skip
    for each in MEASURES:
        if each != "pmi" or premise:
            answer = answer.choosing(scores_of(answer, each, premise), each)
    return answer.choosing(scores_of(answer, measure, premise), "score")
