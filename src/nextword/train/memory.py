"""Peak memory of a block."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ..base import return_freed_memory


class PeakMemory:
    """Peak memory in `bytes`: the process's resident size on a CPU, torch's allocator on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            gc.collect()
            return_freed_memory()  # so that it is not counted
            with suppress(OSError):  # Linux: reset the peak
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def so_far(self) -> int:
        """The peak so far, during the block."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_peak()

    def __exit__(self, *error: object) -> None:
        self.bytes = self.so_far()


def resident_peak() -> int:
    """The process's peak resident bytes, since its start or the last reset."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it: fresh pages cost up to a tenth of a step's time."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation outside the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
