"""Advisory file locks, released when the process ends for any reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(descriptor: int, patience: float = 0.0) -> bool:
    """Lock an open file or folder; False if another process still holds the lock after `patience` seconds.

    On a file system or operating system without such locks, every caller gets one.
    """
    end = time.monotonic() + patience
    while True:
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        except (ImportError, OSError):
            return True
        else:
            return True


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the file `path`. `waiting` is called if another process holds it, before this one waits."""
    with path.open("w") as file:
        if not try_lock(file.fileno()):
            import fcntl

            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
