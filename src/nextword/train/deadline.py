"""Shortens a late run so that it ends about in time with its learning rate decayed.

Each cut is stored in the checkpoint written with it: (step, steps before, steps after). The learning rate is a function
of the step and the cuts, so that resuming from that checkpoint is bit-exact.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

LATE = 1.2  # times the requested time: a run that would end later is shortened
_AIM = 1.15  # times the requested time: the new end, with slack so that the next slow step does not cut it again
_FEWEST, _RECENT = 3, 20  # steps that determine the pace, and more if they are short
_SHARE = 0.05  # of the requested time: a short burst of other load must not cut a run
_COOLDOWN = 0.05  # of the steps done: the fewest left after a cut, for the learning rate to decay
_WORTH_IT = 0.95  # a cut leaves at most this share of the remaining steps

Cut = Sequence[int]  # step, steps before, steps after


def last_step_of(steps: int, cuts: Sequence[Cut]) -> int:
    """The number of steps of a run of `steps` after its cuts."""
    return cuts[-1][2] if cuts else steps


def schedule_step(step: int, cuts: Sequence[Cut]) -> float:
    """The step of the original schedule whose learning rate `step` has: the rest of the schedule is compressed.

    The step of a cut keeps its rate, the last step gets the original last rate, and those between are interpolated.
    """
    position = float(step)
    for start, before, after in reversed(cuts):
        if position >= after - 1:
            position = before - 1.0
        elif position > start:
            position = start + (position - start) * (before - 1 - start) / (after - 1 - start)
    return position


class Deadline:
    """Monitors the pace of a run that should take about `seconds` of training; None: no deadline."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._elapsed: deque[float] = deque()

    def cut(self, step: int, steps: int, elapsed: float) -> Cut | None:
        """The cut to make after `step` of `steps`, `elapsed` seconds of training since the run began, if it is late."""
        if self.seconds is None:
            return None
        recent, least = self._elapsed, _SHARE * self.seconds
        recent.append(elapsed)
        while len(recent) > _RECENT + 1 and elapsed - recent[1] >= least:
            recent.popleft()
        if len(recent) <= _FEWEST or elapsed - recent[0] < least:
            return None
        pace = (elapsed - recent[0]) / (len(recent) - 1)
        left = steps - step
        if left < 1 or elapsed + left * pace <= LATE * self.seconds:
            return None
        room = int((_AIM * self.seconds - elapsed) / pace)
        fewer = max(1, math.ceil(_COOLDOWN * step), room)
        if fewer > _WORTH_IT * left:
            return None
        self._elapsed.clear()
        return (step, steps, step + fewer)
