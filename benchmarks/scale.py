"""How many runs an hour do two workers of a sweep make against one, and what do its scheduling and fits cost?

    python benchmarks/scale.py TEXT [--flops 4e12] [--workers 1 2] [--rounds 1] [--json]

The same sweep, without its hold-out run, is made with each number of workers in turn, in new folders.

runs/hour   of the sweep, from its start to its end
ratio       to the first number of workers
scheduler   processor time of the sweep's own process (looks at the runs, table, fits, report) over the time it took
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nextword.scale.create import Request, new_sweep
from nextword.scale.local import LocalWorkers
from nextword.scale.report import write_results
from nextword.weights.catalogue import cache_folder


@dataclass(frozen=True)
class Measured:
    """A finished sweep."""

    workers: int
    runs: int
    seconds: float
    own_seconds: float  # of the processor, in the sweep's process

    @property
    def runs_an_hour(self) -> float:
        return 3600 * self.runs / self.seconds


def measure(text: str, flops: float, workers: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        sweep, machine = new_sweep(Request(flops=flops), [text], Path(folder), cache_folder(), workers)
        sweep.design = replace(sweep.design, hold_out=0.0)
        sweep.write()
        start, own = time.perf_counter(), time.process_time()
        sweep.run(LocalWorkers(workers), machine, sweep.rows)
        write_results(sweep)
        rows = sweep.rows()
        assert all(row.settled for row in rows), [row for row in rows if not row.settled]
        return Measured(workers, len(rows), time.perf_counter() - start, time.process_time() - own)


def show(found: Sequence[Measured]) -> None:
    first = found[0].runs_an_hour
    print(f"{'workers':>7} {'runs':>5} {'seconds':>8} {'runs/hour':>9} {'ratio':>6} {'scheduler':>9}")
    for one in found:
        print(f"{one.workers:7} {one.runs:5} {one.seconds:8.1f} {one.runs_an_hour:9.0f} {one.runs_an_hour / first:6.2f}"
              f" {one.own_seconds / one.seconds:9.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--flops", type=float, default=4e12)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = [measure(arguments.text, arguments.flops, count)
             for _ in range(arguments.rounds) for count in arguments.workers]  # fmt: skip
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        show(found)


if __name__ == "__main__":
    main()
