"""How near do the compiled matrix products come to what this machine's memory and arithmetic allow?

    python benchmarks/kernels.py [--rounds 9] [--types q4_k,q8_0] [--level avx2] [--threads 2] [--json]

For every type of weights: as many matrices of 2,048 by 2,048 as do not fit into a cache, one after the other, as a
model multiplies them. With one vector, weights read in GB/s and the share of the memory's measured speed; with 8 and
64, multiply-adds a second. Rounds of all types alternate, so that a slow minute of the machine meets them all; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import numpy as np

from nextword import native
from nextword.native.matmul import TYPES, Matrix, Segment, row_bytes
from nextword.plan.machine import read_speed

WIDTH = 2048
BYTES = 64 << 20  # of weights of a type: more than a last-level cache
BATCHES = (1, 8, 64)


def matrices(type: str) -> list[Matrix]:
    """Matrices of one type, with bytes whose scales are finite and mostly not tiny."""
    size = WIDTH * row_bytes(type, WIDTH)
    data = np.random.default_rng(0).integers(0x30, 0x3C, (max(1, BYTES // size), WIDTH, size // WIDTH), dtype=np.uint8)
    return [Matrix(WIDTH, [Segment(type, rows)]) for rows in data]


def seconds_of(network: list[Matrix], x: np.ndarray) -> float:
    """Seconds of one product with each matrix."""
    began = time.perf_counter()
    for matrix in network:
        matrix.multiply(x)
    return time.perf_counter() - began


def measure(types: list[str], rounds: int) -> dict[tuple[str, int], float]:
    """Median seconds by type and number of vectors."""
    networks = {type: matrices(type) for type in types}
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    inputs = {batch: np.random.default_rng(1).normal(size=(batch, WIDTH)).astype(np.float32) for batch in BATCHES}
    for _ in range(rounds):
        for type, network in networks.items():
            for batch, x in inputs.items():
                times[type, batch].append(seconds_of(network if batch == 1 else network[:4], x))
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def lines(types: list[str], rounds: int, speed: float) -> list[dict[str, Any]]:
    """Per type: GB/s of weights with one vector, its share of `speed`, and G multiply-adds a second with more."""
    medians, table = measure(types, rounds), []
    for type in types:
        size = WIDTH * row_bytes(type, WIDTH)
        count = max(1, BYTES // size)
        read = count * size / medians[type, 1]
        line: dict[str, Any] = {"type": type, "gb_s": read / 1e9, "share": read / speed}
        for batch in BATCHES[1:]:
            line[f"gmac_s_{batch}"] = min(count, 4) * WIDTH * WIDTH * batch / medians[type, batch] / 1e9
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--types", default=",".join(TYPES), help="default: all")
    parser.add_argument("--level", choices=native.LEVELS, help="use no more than these instructions")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        native.set_threads(options.threads)
    native.limit_level(options.level)
    speed = read_speed()
    table = lines(options.types.split(","), options.rounds, speed)
    if options.json:
        print(json.dumps({"read_gb_s": speed / 1e9, "level": native.level(), "types": table}))
        return
    print(f"memory: {speed / 1e9:.1f} GB/s, instructions: {native.level()}, threads: {native.threads()}\n")
    print(f"{'':8}{'1 vector':>16}{'of memory':>12}{'8 vectors':>16}{'64 vectors':>16}")
    for line in table:
        print(
            f"{line['type']:8}{line['gb_s']:11.1f} GB/s{line['share']:12.0%}"
            f"{line['gmac_s_8']:9.1f} GMAC/s{line['gmac_s_64']:9.1f} GMAC/s"
        )


if __name__ == "__main__":
    main()
