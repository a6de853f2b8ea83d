"""The engine thread of a process: the caller's own, or a worker's for servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .engine import Engine

_STEPPING = threading.RLock()  # kernels share one thread pool: concurrent steps would only compete
_worker: Worker | None = None


@contextmanager
def stepping() -> Iterator[None]:
    """Hold the right to step engines or change what they run."""
    assert _worker is None or _worker.is_current, "a worker steps the engines of this process: wait for the handle"
    with _STEPPING:
        yield


def working() -> bool:
    """Whether a worker in another thread steps the engines of this process."""
    return _worker is not None and not _worker.is_current


class Worker:
    """A thread that steps engines whenever there is work. At most one per process.

    Use it as a context manager. While it runs, any thread may wait on handles of its engines. `on_step` is called in
    its thread after each step, with all results of the step on their handles.
    """

    def __init__(self, *engines: Engine, on_step: Callable[[], None] | None = None) -> None:
        self._engines, self._on_step = list(engines), on_step
        self._thread = threading.Thread(target=self._work, name="nextword-engine", daemon=True)
        self._wake = threading.Event()
        self._stopped = False

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def add(self, engine: Engine) -> None:
        """Step this engine too. Callable from any thread while the worker runs."""
        engine.wake = self._wake.set
        self._engines = [*self._engines, engine]
        self._wake.set()

    def remove(self, engine: Engine) -> None:
        """Stop stepping an engine whose requests are done."""
        self._engines = [other for other in self._engines if other is not engine]
        engine.wake = None

    def __enter__(self) -> Self:
        global _worker
        with _STEPPING:
            assert _worker is None, "a worker is already running in this process"
            _worker = self
        for engine in self._engines:
            engine.wake = self._wake.set
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _worker
        self._stopped = True
        self._wake.set()
        self._thread.join()
        for engine in self._engines:
            engine.wake = None
        _worker = None

    def _work(self) -> None:
        while True:
            self._wake.clear()
            if self._stopped:  # read after clearing, or the last wake could be lost
                return
            busy = [self._step(engine) for engine in self._engines]  # one step each in turn
            if self._on_step is not None:
                self._on_step()
            if not any(busy):
                self._wake.wait()

    @staticmethod
    def _step(engine: Engine) -> bool:
        try:
            return engine.step()
        except Exception:  # reported on the handles of its requests
            return True
