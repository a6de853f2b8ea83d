"""torch's number of threads, a setting of the whole process: kept as the caller left it, and following the load."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from ..base.cores import cores

_WINDOW_SECONDS, _WINDOW_STEPS = 1.0, 3  # of steps between two looks at the load
_TRIAL_STEPS = 3  # with another number of threads; the first is not counted
_WORTH = 0.95  # of the time of a step: to switch for less would be to follow noise
_WAITING = 0.1  # of the time: seconds that threads were ready to run and did not
_IDLE = 0.5  # cores
_LONGEST_REST = 64  # windows between trials that did not help


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore torch's number of threads afterwards; a context manager, or a decorator of a function that changes it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """Numbers of threads worth trying here, the largest first: all cores, half of them, one."""
    most = cores()
    return sorted({most, max(1, most // 2), 1}, reverse=True)


class Load(Protocol):
    """What the processor did since the last call."""

    def since(self) -> tuple[float, float]:
        """Seconds that this process's threads waited for a core; core-seconds that were idle."""


class LinuxLoad:
    """The load as Linux counts it; elsewhere always zero."""

    def __init__(self) -> None:
        self._last = self._now()

    def since(self) -> tuple[float, float]:
        """As `Load.since`."""
        before, self._last = self._last, self._now()
        return max(0.0, self._last[0] - before[0]), max(0.0, self._last[1] - before[1])

    @staticmethod
    def _now() -> tuple[float, float]:
        waited = 0
        for path in Path("/proc/self/task").glob("*/schedstat"):
            try:
                waited += int(path.read_text().split()[1])
            except (OSError, ValueError, IndexError):  # the thread has ended; or a kernel without these counts
                continue
        try:
            idle = int(Path("/proc/stat").read_text().split(maxsplit=5)[4])
        except (OSError, ValueError, IndexError):
            return 0.0, 0.0
        return waited / 1e9, idle / os.sysconf("SC_CLK_TCK")


class ThreadFollower:
    """Finds the fastest number of threads for the next step while other programs come and go.

    Where threads wait for a core, fewer are tried for some steps; where cores are idle, more. The faster are kept.
    """

    def __init__(self, counts: Sequence[int], now: int, load: Load | None = None) -> None:
        self.counts = sorted({*counts, now})
        self.threads = now  # in use, apart from a trial
        self.trial: int | None = None
        self._load = LinuxLoad() if load is None else load
        self._steps: list[float] = []
        self._trial_steps: list[float] = []
        self._typical = 0.0
        self._rest = self._rested = 0

    @property
    def next(self) -> int:
        """Threads of the next step."""
        return self.trial or self.threads

    def forbid(self, threads: int) -> None:
        """Never try `threads` again."""
        self.counts.remove(threads)
        self._end_trial()

    def ran(self, seconds: float) -> str:
        """Record a step with `next` threads. Returns what to say if the number in use changed, otherwise ''."""
        if self.trial is not None:
            self._trial_steps.append(seconds)
            return self._judge() if len(self._trial_steps) == _TRIAL_STEPS else ""
        self._steps.append(seconds)
        if len(self._steps) >= _WINDOW_STEPS and sum(self._steps) >= _WINDOW_SECONDS:
            self._look()
        return ""

    def _look(self) -> None:
        """Begin a trial if the load suggests one."""
        passed, self._typical = sum(self._steps), statistics.median(self._steps)
        self._steps.clear()
        waited, idle = self._load.since()
        place = self.counts.index(self.threads)
        self._rested += 1
        if self._rested <= self._rest:
            return
        if waited > _WAITING * passed and place > 0:
            self.trial = self.counts[place - 1]
        elif idle > _IDLE * passed and place + 1 < len(self.counts):
            self.trial = self.counts[place + 1]

    def _judge(self) -> str:
        now, before, trial = statistics.mean(self._trial_steps[1:]), self._typical, self.trial
        assert trial is not None
        self._end_trial()
        if now > _WORTH * before:
            self._rest = min(2 * self._rest + 1, _LONGEST_REST)
            return ""
        said = (
            f"{trial} {'thread' if trial == 1 else 'threads'} from here on: {now:.2g} s a step, with {self.threads}"
            f" {before:.2g} s, because {'other programs run' if trial < self.threads else 'cores are free'}"
        )
        self.threads, self._rest = trial, 0
        return said

    def _end_trial(self) -> None:
        self.trial = None
        self._trial_steps.clear()
        self._rested = 0
        self._load.since()
