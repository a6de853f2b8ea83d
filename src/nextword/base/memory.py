"""Free memory."""

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
