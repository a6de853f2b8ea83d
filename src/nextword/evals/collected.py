"""What an evaluation costs, and the answers it collects, before statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from .answers import Answer
from .settings import Calibrate
from .task import Item, Task
from .trials import Condition


@dataclass(frozen=True)
class Cell:
    """One condition and its answers, in the order of the items. `metrics` are the task's own, over all items.

    With `of_the_choice` acc, f1 and mcc are those of the choice made (`Answer.prediction`, `values["score"]`): after a
    calibration, or by the measure that the user asked for. Otherwise they are the harness's: of the likeliest choice.
    """

    condition: Condition
    answers: tuple[Answer, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    of_the_choice: bool = False

    @property
    def calibration(self) -> Calibrate | None:
        """The correction that its choices come from; None for the model's own."""
        return next((way for way in get_args(Calibrate) if way == self.condition.variant), None)

    @property
    def scores(self) -> np.ndarray:
        """The score of every item, (items,)."""
        return np.array([answer.values["score"] for answer in self.answers])


@dataclass(frozen=True)
class Cost:
    """What an evaluation costs: tokens to read, the same without prefix sharing (`alone`), tokens to generate at most.

    Of `tokens`, `embedded` were read already, to find similar shots: without these no prompt is known.
    """

    requests: int
    tokens: int
    alone: int
    written: int
    longest: int  # tokens of the longest prompt with its answer
    context: int | None
    seconds: float  # s, at speeds measured on this machine; 0 if not measured
    known: int = 0  # requests that the store answers
    embedded: int = 0


@dataclass(frozen=True)
class Notes:
    """What a user should know about the data and the prompts."""

    reading: tuple[str, ...] = ()
    repeated: int = 0  # scored items whose text an example in the pool repeats
    apart: tuple[
        tuple[str, str], ...
    ] = ()  # answers off a token boundary: the prompt's last token and the answer's first
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
            for last, first in self.apart[:most]
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
    cells: tuple[Cell, ...]
    measure: str
    costs: tuple[Cost, ...]
    notes: Notes
    seconds: float
    read: int  # tokens read by the models in this run
    same_shots: bool = True  # a draw is one set for all items; not so in lm-eval mode and with --select similar
    calibrate: tuple[str, ...] = ()  # the corrections that were asked for
