"""Peak memory of a block, and what a process takes before it trains."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ..base import return_freed_memory

_RESET = Path("/proc/self/clear_refs")  # Linux


class PeakMemory:
    """Peak memory of a block, in `bytes`: the process's resident size on a CPU, torch's allocator on a GPU.

    Where the system does not let a process reset its peak, it is the process's since its start; see `own`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._before = 0  # the earlier peak, where it could not be reset

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        resident_memory()  # returns what is freed, so that it is not counted
        try:
            _RESET.write_text("5")
        except OSError:
            self._before = resident_peak()
        return self

    @property
    def own(self) -> bool:
        """Whether the peak so far is the block's, not one that the process reached before."""
        return self.so_far() > self._before

    def so_far(self) -> int:
        """The peak so far, during the block."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident_peak()

    def __exit__(self, *error: object) -> None:
        self.bytes = self.so_far()


def resident_memory() -> int:
    """The process's resident bytes, after what it freed is returned to the system; 0 where that is not known."""
    gc.collect()
    return_freed_memory()
    return _status("VmRSS") or 0


def resident_peak() -> int:
    """The process's peak resident bytes, since its start or the last reset."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(name: str) -> int | None:
    """Bytes of a line of this process's status; None where the system has none."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
    return None


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory: without a GPU, fresh pages cost up to a tenth of a step's time."""
    if torch.cuda.is_available():
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation outside the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
