"""Progress of preparing text, as lines now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..base.units import format_seconds
from .documents import Sources


class Progress:
    """Logs the stage, its progress and the time left: a line every 10 seconds, or every 10% if that took 2 seconds."""

    def __init__(
        self, sources: Sources, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sources, self.log, self.clock = sources, log, clock
        self.stage, self.share, self.last = "", 0.0, 0.0
        self.began, self.share_at_first = 0.0, 0.0  # of the stage, which may continue an interrupted one

    def __call__(self, share: float, stage: str) -> None:
        now = self.clock()
        if stage != self.stage:
            self.log(f"{stage}: {self.sources.bytes / 1e6:,.1f} MB")
            self.began, self.share_at_first = now, share
        elif not (now - self.last >= 10 or (now - self.last >= 2 and share - self.share >= 0.1)):
            return
        else:
            done = share - self.share_at_first
            left = f", {format_seconds((now - self.began) * (1 - share) / done)} left" if done > 0 and share < 1 else ""
            self.log(f"{stage}: {share:.0%}{left}")
        self.stage, self.share, self.last = stage, share, now
