"""Measures this machine: `python -m nextword.plan.machine` prints JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from ..base.cores import cores

WIDTH = 2048  # of the square float32 matrices: 17 GFLOP a product
READ_BYTES = 256 << 20  # far beyond a cache
SECONDS = 0.45  # for each of the two


def main() -> None:
    """Measure both and print them."""
    print(json.dumps({"flops": matmul_speed(), "bandwidth": read_speed()}))


def matmul_speed() -> float:
    """FLOP/s of a float32 matrix product by numpy's BLAS, all cores, the best of several."""
    import numpy as np

    left = np.random.default_rng(0).random((WIDTH, WIDTH), dtype=np.float32)
    out = np.empty_like(left)
    return 2 * WIDTH**3 / _best(lambda: np.matmul(left, left, out=out))


def read_speed() -> float:
    """Bytes a second that all cores together read from memory, the best of several."""
    import numpy as np

    data = np.ones(READ_BYTES // 8)
    shares = np.array_split(data, cores())

    def read() -> None:
        threads = [threading.Thread(target=np.maximum.reduce, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return data.nbytes / _best(read)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run within the time limit; the first run is a warm-up."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
