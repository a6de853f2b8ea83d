"""Results of a context study: by kind of model, task and width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..spec import ModelKind
from .estimates import Estimate

ABLE = 0.95  # share of correct answers
RATES = (1e-3, 3e-3, 1e-2)  # learning rates tried


@dataclass(frozen=True)
class TaskResult:
    """One kind at one size: accuracy, loss in nats per answer, and that of the best memoryless guess."""

    task: str
    size: int
    accuracy: Estimate  # over seeds and test examples
    by_seed: tuple[float, ...]  # accuracy of each seed
    loss: Estimate
    baseline: float
    guess: float  # accuracy of guessing the most frequent symbol
    rate: float
    steps: int

    @property
    def able(self) -> bool | None:
        """Whether accuracy reaches `ABLE`, for all seeds and within the interval; None if unclear."""
        if self.accuracy.low >= ABLE and min(self.by_seed) >= ABLE:
            return True
        return False if self.accuracy.high < ABLE and max(self.by_seed) < ABLE else None

    @property
    def learned(self) -> bool:
        """Whether it significantly uses the symbols' positions, not only their frequencies."""
        return self.accuracy.low > self.guess


@dataclass(frozen=True)
class WidthResult:
    """The narrowest tested width that learned to recall `pairs` pairs, and its size; None if none did."""

    kind: ModelKind
    pairs: int
    width: int | None
    parameters: int | None
    state_bytes: int | None  # float32, at the task's length
    best: Estimate  # test accuracy at the width that was best in validation
    steps: int


@dataclass(frozen=True)
class Plan:
    """How the time is divided: equal steps for every kind, rate and seed."""

    text_steps: int
    task_steps: int
    sizes: dict[str, tuple[int, ...]]
    test_tokens: int  # of held-out text, measured
    width_steps: int = 0
    speed_seconds: float = 0.0  # 0: speed is not measured
    threads: int = 1
    rates: tuple[float, ...] = RATES
    seeds: int = 3  # runs of each rate


@dataclass(frozen=True)
class Mean:
    """An estimate at a number of tokens seen."""

    at: int
    estimate: Estimate


@dataclass(frozen=True)
class KindResult:
    """One kind of model at its best rate. Losses in nats per token, bytes of float32 state per sequence."""

    kind: ModelKind
    parameters: int
    width: int
    rate: float
    loss: Estimate
    by_seed: tuple[float, ...]  # loss of each seed
    over_frequencies: Estimate  # loss minus that of guessing by token frequency
    carrying: Estimate | None  # recurrent nets: effect of carrying the state across windows
    by_position: tuple[Mean, ...]
    by_visible: tuple[Mean, ...]  # loss given only the last `at` to 2 `at` - 1 tokens
    gain_beyond: tuple[Mean, ...]  # paired: gain of the longest over `at` to 2 `at` - 1
    useful: int  # largest distance beyond which tokens are useful; 0 if not shown for any
    tasks: tuple[TaskResult, ...]
    state_bytes: dict[int, float]  # by distance
    tokens_per_second: dict[str, Estimate]  # "threads x length" -> training on one row
    two_threads: Estimate | None  # speedup of two threads over one

    @property
    def trained(self) -> bool:
        """Whether it predicts significantly better than token frequencies."""
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
    behind: dict[str, Estimate]  # excess loss over the best kind, paired; simultaneous intervals
    widths: tuple[WidthResult, ...] = ()

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the figure."""
        from .plots import study_bundle

        return study_bundle(self)
