"""What a run tells while it trains, and what it asks: whether to stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .evaluate import ValLoss


@dataclass(frozen=True)
class TrainStep:
    """One step as it is written to metrics.jsonl. Losses in nats a token."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int  # of this step, over all processes
    seconds: float
    data_seconds: float  # of them, making the batch
    action: str = ""  # "stop", "skip" or "rewind" at a loss spike
    reason: str = ""  # what was wrong with the loss


class Callbacks:
    """Override what you want to hear; every method here does nothing.

    `on_start`, `on_end` and `should_stop` are called in every process of a run, the others in the first alone.
    """

    def on_start(self) -> None:
        """Training begins."""

    def on_end(self) -> None:
        """Training has ended, or failed."""

    def should_stop(self) -> bool:
        """Whether to end after the step under way, with a checkpoint."""
        return False

    def on_step(self, step: TrainStep) -> None:
        """A step is done."""

    def on_evaluation(self, step: int, loss: ValLoss) -> None:
        """The held-out loss after `step` steps."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint is written."""

    def on_steps_changed(self, steps: int) -> None:
        """The run has `steps` steps now."""

    def on_message(self, message: str) -> None:
        """Something that the user may want to know."""

    def on_sample(self, step: int, model: nn.Module) -> None:
        """The model as it is, in eval mode: a time to complete a prompt with it."""
