"""Advisory file locks, released when the process ends for any reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder; False if another process holds the lock.

    On a file system or operating system without such locks, every caller gets one.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
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
