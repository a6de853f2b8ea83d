"""What this machine's processor and memory really do, measured in well under a second.

For choosing between ways of computing and for saying how near to the machine's limits a measurement comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Measured with torch's threads: the best of a few runs, since neighbours only ever take speed away."""

    threads: int
    read_gb_s: float  # 1e9 bytes of memory read a second, beyond the caches
    float32_gflops: float  # 1e9 operations a second in a square matrix product; a multiply-add is two
    bfloat16_gflops: float


def measure(megabytes: int = 128, side: int = 768, repeats: int = 6) -> Machine:
    """Read `megabytes` (more than the caches hold) and multiply matrices of `side` x `side`."""
    import torch

    numbers = torch.ones(megabytes * 250_000)
    a, b = torch.ones(side, side), torch.ones(side, side)

    def product(dtype: torch.dtype) -> float:
        left, right = a.to(dtype), b.to(dtype)
        return 2 * side**3 / 1e9 / _best(lambda: torch.mm(left, right), repeats, within=0.15)

    with torch.inference_mode():
        read = numbers.nbytes / 1e9 / _best(numbers.sum, repeats, within=0.15)
        return Machine(torch.get_num_threads(), read, product(torch.float32), product(torch.bfloat16))


def _best(work: Callable[[], object], repeats: int, within: float) -> float:
    """Seconds of the fastest of `repeats` runs after a first one; fewer once `within` seconds are used up."""
    work()
    began, best = time.perf_counter(), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - began > within:
            break
    return best
