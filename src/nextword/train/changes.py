"""Changes of settings on resuming a run, each from a given step on.

A run's results are a function of its configuration and these changes: resuming from any checkpoint applies each change
from its own step on, and gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from ..base.cores import check_threads
from ..base.fields import Within, check_fields
from ..plan.run_config import LossSpikeAction
from ..spec import Positive


@dataclass(frozen=True)
class Settings:
    """The settings that can be changed."""

    on_loss_spike: LossSpikeAction
    threads: int | None  # None: torch's own number
    steps: int  # of the whole run
    learning_rate_scale: float = 1.0  # factor on the scheduled rate

    def after(self, changes: Iterable[Change], step: float = math.inf) -> Settings:
        """The settings at `step`, or at the end. Of two changes, the one recorded last wins."""
        settings = self
        for change in changes:
            if change.step <= step:
                settings = replace(settings, **change.values())
        return settings


@dataclass(frozen=True)
class Change:
    """Changed settings from `step` on. None: unchanged."""

    step: Annotated[int, Within(least=0)] = 0
    on_loss_spike: LossSpikeAction | None = None
    threads: Annotated[int, Within(least=1)] | None = None
    steps: Annotated[int, Within(least=1)] | None = None
    learning_rate_scale: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)

    def values(self) -> dict[str, Any]:
        """The changed settings, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "step"}

    def beyond(self, *settings: Settings) -> Change:
        """The part of the change that differs from `settings`."""
        new = [name for name, value in self.values().items() if any(getattr(old, name) != value for old in settings)]
        return Change(self.step, **{name: getattr(self, name) for name in new})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"step": self.step, **self.values()}

    def __str__(self) -> str:
        options = [f"--{name.replace('_', '-')} {value}" for name, value in self.values().items()]
        return f"from step {self.step:,} on: {', '.join(options)}"


NO_CHANGE = Change()
