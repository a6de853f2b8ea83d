"""The seconds of a run, over all its sessions, and what they were spent on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Spent:
    """Seconds of a run so far. `evaluated`: tokens of the evaluations that took `evaluating`."""

    elapsed: float = 0.0
    beside: float = 0.0  # of these between steps: evaluations, samples and checkpoints
    evaluating: float = 0.0
    evaluated: int = 0
    saving: float = 0.0  # the last checkpoint


class RunClock:
    """Counts a run's seconds, from its construction on and, after `resume`, with those of earlier sessions.

    `now` gives seconds, from any beginning.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._began = now()
        self._spent = Spent()
        self._evaluations = 0  # in this session
        self._first_counts = False

    def resume(self, spent: Spent) -> None:
        """Add what earlier sessions spent."""
        self._spent = replace(spent)

    @property
    def spent(self) -> Spent:
        """Up to now."""
        return replace(self._spent, elapsed=self._spent.elapsed + self.now() - self._began)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Count the block's seconds as beside steps."""
        start = self.now()
        yield
        self._spent = replace(self._spent, beside=self._spent.beside + self.now() - start)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the block's seconds as those of a checkpoint."""
        start = self.now()
        yield
        self._spent = replace(self._spent, saving=self.now() - start)

    def evaluated(self, start: float, tokens: int) -> None:
        """An evaluation of `tokens`, begun at `start`, is done.

        The first one of a session takes longer than others, and counts only until there is another.
        """
        spent, seconds = self._spent, self.now() - start
        self._evaluations += 1
        if self._evaluations == 1:
            self._first_counts = not spent.evaluated
            if not self._first_counts:
                return
        elif self._evaluations == 2 and self._first_counts:
            spent = replace(spent, evaluating=0.0, evaluated=0)
        self._spent = replace(spent, evaluating=spent.evaluating + seconds, evaluated=spent.evaluated + tokens)
