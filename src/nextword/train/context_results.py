"""What a study of context measured: by kind of model, by task, by width."""

from __future__ import annotations

from dataclasses import dataclass

from ..spec import ModelKind
from .estimates import Estimate

ABLE = 0.95  # share of answers right


@dataclass(frozen=True)
class TaskResult:
    """Of one kind at one size: share of answers right, loss in nats an answer, that of the best memoryless guess."""

    task: str
    size: int
    accuracy: Estimate  # over seeds and test examples
    by_seed: tuple[float, ...]  # the same of each seed
    loss: Estimate
    baseline: float
    guess: float  # share that is right by naming the symbol shown most often
    rate: float
    steps: int

    @property
    def able(self) -> bool | None:
        """Whether `ABLE` answers are right, for all seeds and within the interval; None where that is not clear."""
        if self.accuracy.low >= ABLE and min(self.by_seed) >= ABLE:
            return True
        return False if self.accuracy.high < ABLE and max(self.by_seed) < ABLE else None

    @property
    def learned(self) -> bool:
        """Whether it surely knows where symbols stood, not only which."""
        return self.accuracy.low > self.guess


@dataclass(frozen=True)
class WidthResult:
    """The narrowest of the widths tried that learned to recall `pairs` pairs, and what it has; None where none did."""

    kind: ModelKind
    pairs: int
    width: int | None
    parameters: int | None
    state_bytes: int | None  # float32, at the task's length
    best: Estimate  # share of answers right, over test examples, at the width that was best in validation
    steps: int


@dataclass(frozen=True)
class Plan:
    """How the time is split: equal steps for every kind, rate and seed."""

    text_steps: int
    task_steps: int
    sizes: dict[str, tuple[int, ...]]
    test_tokens: int  # of held-out text, measured
    width_steps: int = 0
    speed_seconds: float = 0.0
    threads: int = 1


@dataclass(frozen=True)
class Mean:
    """An estimate at a place: tokens seen."""

    at: int
    estimate: Estimate


@dataclass(frozen=True)
class KindResult:
    """One kind of model at its best rate. Losses in nats a token, bytes of float32 state a sequence."""

    kind: ModelKind
    parameters: int
    width: int
    rate: float
    loss: Estimate
    by_seed: tuple[float, ...]  # loss of each seed
    over_frequencies: Estimate  # loss less that of guessing by how frequent each token is
    carrying: Estimate | None  # recurrent nets: what carrying the state from window to window changes
    by_position: tuple[Mean, ...]
    by_visible: tuple[Mean, ...]  # loss given only the last `at` to 2 `at` - 1 tokens
    gain_beyond: tuple[Mean, ...]  # paired: what the longest of these is worth over `at` to 2 `at` - 1
    useful: int  # tokens beyond the last so many are of use; 0 where that is not shown even for one
    tasks: tuple[TaskResult, ...]
    state_bytes: dict[int, float]  # by distance
    tokens_per_second: dict[str, Estimate]  # "threads x length" -> training, one row
    two_threads: Estimate  # speed of two threads over that of one

    @property
    def trained(self) -> bool:
        """Whether it surely predicts better than the frequencies of tokens."""
        return self.over_frequencies.high < 0


@dataclass(frozen=True)
class Study:
    """All kinds on one text."""

    context: int
    tokens: int  # seen by each run
    plan: Plan
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    confidence: float
    kinds: tuple[KindResult, ...]
    behind: dict[str, Estimate]  # loss over that of the kind with the lowest, paired; intervals hold together
    widths: tuple[WidthResult, ...] = ()
