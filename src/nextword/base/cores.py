"""The cores that this process may use, and how many threads make sense on them."""

from __future__ import annotations

import os

from .errors import UsageError

_THREADS_A_CORE = 4  # more of them only wait; tens of thousands end in a crash of OpenMP


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Raise UsageError for more threads than 4 a core. None, or 0, leaves the choice to others."""
    most = _THREADS_A_CORE * cores()
    if threads is not None and threads > most:
        raise UsageError(
            f"{name} {threads:,}: this process may use {cores():,} {'core' if cores() == 1 else 'cores'};"
            f" give at most {most:,}"
        )
