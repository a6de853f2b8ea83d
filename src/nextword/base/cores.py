"""The cores that this process may use, and how many threads make sense on them."""

from __future__ import annotations

import os

from .fields import FieldError

_THREADS_A_CORE = 4  # more of them only wait; tens of thousands end in a crash of OpenMP


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise FieldError, a UsageError, for more than 4 threads a core. None, or 0, leaves the number to others."""
    here = cores()
    if threads is not None and threads > _THREADS_A_CORE * here:
        most = f"at most {_THREADS_A_CORE * here:,}, {_THREADS_A_CORE} for each core this process may use ({here:,})"
        raise FieldError("threads", threads, most)
