"""Settings that change when a run is resumed, each from a step on.

The numbers of a run are a function of its configuration and of these changes: whoever resumes it later, from whichever
checkpoint, applies each change from its own step on and gets the same bits.
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
    """What a change can set."""

    on_loss_spike: LossSpikeAction
    threads: int | None  # None: torch's own number
    steps: int  # of the whole run
    learning_rate_scale: float = 1.0  # times the rate of the schedule

    def after(self, changes: Iterable[Change], step: float = math.inf) -> Settings:
        """What is in force at `step`; without one, at the end. Of two changes the one recorded last wins."""
        settings = self
        for change in changes:
            if change.step <= step:
                settings = replace(settings, **change.values())
        return settings


@dataclass(frozen=True)
class Change:
    """Settings in force from `step` on. None leaves a setting as it was."""

    step: Annotated[int, Within(least=0)] = 0
    on_loss_spike: LossSpikeAction | None = None
    threads: Annotated[int, Within(least=1)] | None = None
    steps: Annotated[int, Within(least=1)] | None = None
    learning_rate_scale: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)

    def values(self) -> dict[str, Any]:
        """The settings that it sets, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "step"}

    def beyond(self, *settings: Settings) -> Change:
        """Only what differs from one of `settings`."""
        new = [name for name, value in self.values().items() if any(getattr(old, name) != value for old in settings)]
        return Change(self.step, **{name: getattr(self, name) for name in new})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"step": self.step, **self.values()}

    def __str__(self) -> str:
        options = [f"--{name.replace('_', '-')} {value}" for name, value in self.values().items()]
        return f"from step {self.step:,} on: {', '.join(options)}"


NO_CHANGE = Change()
