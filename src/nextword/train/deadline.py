"""Ends a run of `train.minutes` in time: the clock says when its learning rate decays, and which step is the last.

What it says is kept as ends, each in the checkpoint that is written with it. The learning rate is a function of the
step and these ends (schedules.py), so that resuming is bit-exact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_TOLERANCE = 0.015  # of the requested time: the last step is moved if the run would end further off,
_LATER = 0.1  # and by more than this share of the time left, since what is left may still change
_WINDOW = 0.25  # of the time left: the steps that determine the pace take that long
_FEWEST = 3  # of them, at least, to move the last step
_COOLDOWN = 0.025  # of the steps done: the fewest left, where the time is over, for the learning rate to decay


@dataclass(frozen=True)
class End:
    """After `step` steps, the clock gave a run of `before` steps `after` steps in all."""

    step: int
    before: int
    after: int


@dataclass(frozen=True)
class Times:
    """What a run has taken over all its sessions, and what it will take after its last step. In seconds.

    `beside` is what evaluations, samples and checkpoints between steps took, `writing` what the last files will. The
    last evaluation takes as long as `closing` steps: it is as fast or slow as these.
    """

    elapsed: float
    beside: float = 0.0
    closing: float = 0.0
    writing: float = 0.0


class Deadline:
    """Counts the time of a run that should take `seconds` from its start to its end, planned with `steps` steps.

    `decay`: the share of the steps that decay the learning rate, with a schedule whose decay can begin at any step;
    None: the schedule needs to know the last step from the beginning.
    """

    def __init__(self, seconds: float, steps: int, decay: float | None) -> None:
        self.seconds, self.steps, self.decay = seconds, steps, decay
        self._passed: deque[tuple[int, float]] = deque()  # steps done, and the seconds that they took

    def passed(self, step: int, times: Times) -> None:
        """Note that `step` steps are done."""
        recent, seconds = self._passed, times.elapsed - times.beside
        if recent and step <= recent[-1][0]:  # the run was rewound
            recent.clear()
        recent.append((step, seconds))
        while len(recent) > _FEWEST + 1 and seconds - recent[1][1] >= _WINDOW * (self.seconds - times.elapsed):
            recent.popleft()

    def restart(self) -> None:
        """Forget the pace so far: it has led to a decision."""
        self._passed.clear()

    def steps_left(self, step: int, times: Times) -> int:
        """The steps that the rest of the time has room for at the recent pace."""
        pace = self._pace(step, times)
        left = self.seconds - times.elapsed - times.writing - times.closing * pace
        return max(0, round(left / (pace + times.beside / max(1, step))))

    def _pace(self, step: int, times: Times) -> float:
        """Seconds of a step, without what is beside steps."""
        (first, begun), (last, ended) = self._passed[0], self._passed[-1]
        if last > first:
            return max((ended - begun) / (last - first), 1e-9)
        if step > 1:  # the first step of a session
            return max((times.elapsed - times.beside) / step, 1e-9)
        return self.seconds / self.steps

    def end(self, step: int, steps: int, times: Times, waits: bool) -> End | None:
        """The end to set after `step` steps, if it is time to; otherwise the run has `steps` steps.

        `waits`: the decay has not begun. It begins when the time left is what its steps take.
        """
        room, left = self.steps_left(step, times), steps - step
        if waits and self.decay is not None:
            if (room - 1) * (1 - self.decay) >= step * self.decay:
                return None
            return End(step, steps, step + max(room, int(min(_COOLDOWN, self.decay) * step)))
        room = max(room, min(left, int(_COOLDOWN * step)))
        if left < 1 or not self._is_worth_it(abs(left - room), left, step, times):
            return None
        return End(step, steps, step + room)

    def _is_worth_it(self, off: int, left: int, step: int, times: Times) -> bool:
        """Whether to move the last step by `off`, `left` being left: not for little, and not by a few steps' pace."""
        pace, time_left = self._pace(step, times), max(0.0, self.seconds - times.elapsed)
        recent = self._passed[-1][1] - self._passed[0][1]
        known = len(self._passed) > _FEWEST and recent >= _WINDOW * min(time_left, left * pace)
        return known and off * pace > max(_TOLERANCE * self.seconds, _LATER * time_left)
