"""Callbacks of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluate import ValLoss
    from .forecast import Forecast


@dataclass(frozen=True)
class TrainStep:
    """One step, as written to metrics.jsonl. Losses in nats per token."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # in this step, over all processes
    seconds: float
    data_seconds: float  # spent on making the batch
    share_of_peak: float | None = None  # FLOP/s of the model over those of a matrix product here; None: not measured
    action: str = ""  # "stop", "skip" or "rewind" at a loss spike
    reason: str = ""  # what was wrong with the loss

    @property
    def tokens_per_second(self) -> float:
        """Over all processes."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Callbacks:
    """Override the methods you need; by default they do nothing.

    `on_start`, `on_end` and `should_stop` are called in every process of a run, the others only in the first.
    """

    def on_start(self) -> None:
        """Training begins."""

    def on_end(self) -> None:
        """Training has ended, or failed."""

    def should_stop(self) -> bool:
        """Whether to stop after the current step, with a checkpoint."""
        return False

    def on_step(self, step: TrainStep) -> None:
        """A step is done, or was rejected by the loss guard (`step.action`)."""

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        """The held-out loss was measured after `step` steps."""

    def on_forecast(self, step: int, forecast: Forecast) -> None:
        """After `step` steps, the held-out loss at the run's end was forecast."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint was written."""

    def on_steps_changed(self, steps: int, about: bool = False) -> None:
        """The run's number of steps changed to `steps`; `about`: an estimate, until the clock has set its end."""

    def on_message(self, message: str) -> None:
        """A message for the user."""

    def on_sample(self, step: int, text: str) -> None:
        """The model after `step` steps completed the sample prompt to `text`."""


class CallbackList(Callbacks):
    """Calls each of `callbacks` in turn."""

    def __init__(self, callbacks: Sequence[Callbacks]) -> None:
        self.callbacks = tuple(callbacks)

    def on_start(self) -> None:
        for each in self.callbacks:
            each.on_start()

    def on_end(self) -> None:
        for each in self.callbacks:
            each.on_end()

    def should_stop(self) -> bool:
        return any(each.should_stop() for each in self.callbacks)

    def on_step(self, step: TrainStep) -> None:
        for each in self.callbacks:
            each.on_step(step)

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        for each in self.callbacks:
            each.on_evaluation(step, loss)

    def on_forecast(self, step: int, forecast: Forecast) -> None:
        for each in self.callbacks:
            each.on_forecast(step, forecast)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        for each in self.callbacks:
            each.on_checkpoint(step, folder)

    def on_steps_changed(self, steps: int, about: bool = False) -> None:
        for each in self.callbacks:
            each.on_steps_changed(steps, about)

    def on_message(self, message: str) -> None:
        for each in self.callbacks:
            each.on_message(message)

    def on_sample(self, step: int, text: str) -> None:
        for each in self.callbacks:
            each.on_sample(step, text)
