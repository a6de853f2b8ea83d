"""The cores this process may use, and a limit on threads."""

from __future__ import annotations

import os

from .fields import FieldError

_THREADS_A_CORE = 4  # more only wait; tens of thousands crash OpenMP


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise FieldError, a UsageError, for more than 4 threads per core. None and 0 mean the default."""
    if threads is not None and threads > (most := most_threads()):
        limit = f"at most {most:,}, {_THREADS_A_CORE} for each core this process may use ({cores():,})"
        raise FieldError("threads", threads, limit)


def most_threads() -> int:
    """The most threads that a setting may name on this machine."""
    return _THREADS_A_CORE * cores()
