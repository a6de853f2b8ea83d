"""Free memory, and memory that is freed."""

import ctypes
from contextlib import suppress
from pathlib import Path


def free_memory() -> int | None:
    """Bytes of memory available without swapping, or None if the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def return_freed_memory() -> None:
    """Let glibc return to the system what is freed: it keeps what lies between other things. Elsewhere does nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
