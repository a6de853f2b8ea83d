"""Callbacks of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .evaluate import ValLoss


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
    action: str = ""  # "stop", "skip" or "rewind" at a loss spike
    reason: str = ""  # what was wrong with the loss


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
        """A step is done."""

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        """The held-out loss was measured after `step` steps."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint was written."""

    def on_steps_changed(self, steps: int) -> None:
        """The run's number of steps changed to `steps`."""

    def on_message(self, message: str) -> None:
        """A message for the user."""

    def on_sample(self, step: int, model: nn.Module) -> None:
        """The current model, in eval mode, to complete a sample prompt."""
