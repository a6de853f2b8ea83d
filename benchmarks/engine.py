"""How fast does the engine complete: one sequence and many, greedy and sampled, and many behind one prompt?

    python benchmarks/engine.py [--dtype float32] [--rounds 3] [--source OTHER/src ...] [--json]

Each `--source`, the `src` folder of another checkout, runs in turn with this one, each in a process of its own, so that
a slow minute of the machine meets them all. Medians are printed, and ratios to the first other source.

prefill   600 tokens read, tokens a second
greedy1   128 tokens behind a prompt of 9, one sequence, tokens a second
sampled1  the same at temperature 1; sampled8 and sampled32: that many sequences at once, in total
prefix16  seconds for 16 samples of 32 tokens behind one prompt of 600
lookup    greedy decoding of a repetitive text with `speculate=8`, tokens per second (0 if a checkout lacks the option)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
HERE = str(Path(__file__).parents[1] / "src")
PROMPT = "The history of the printing press begins with"
NEW, LONG = 128, 600


def measure(dtype: str) -> dict[str, float]:
    import nextword

    model = nextword.load(MODEL, dtype=dtype)  # type: ignore[arg-type]
    ids = model.encode(PROMPT)
    endless: dict[str, Any] = {"max_tokens": NEW, "logit_bias": dict.fromkeys(model.tokenizer.stop_ids, -1e9)}

    def speed(prompt: list[int], count: int, temperature: float, **more: Any) -> float:
        settings = {**endless, "temperature": temperature, "seed": 1, **more}
        return max(
            model.complete_all([prompt], n=count, **settings)[0].timings.decode_tokens_per_second for _ in range(2)
        )

    def seconds(prompt: list[int], **settings: Any) -> float:
        began = time.perf_counter()
        model.complete_all([prompt], **settings)
        return time.perf_counter() - began

    found = {"prefill": LONG / min(seconds([*range(n, n + LONG)], max_tokens=1, seed=1) for n in (1000, 2000, 3000))}
    found["greedy1"] = speed(ids, 1, 0)
    for count in (1, 8, 32):
        # a bias would take the slow way through the sampler: a sampled text may end here
        found[f"sampled{count}"] = speed(ids, count, 1, logit_bias={})
    found["prefix16"] = min(seconds([*range(n, n + LONG)], n=16, max_tokens=32, seed=1) for n in (4000, 5000))
    lookup = {"speculate": 8} if _has_lookup() else {}
    found["lookup"] = speed(model.encode("one two three four five. " * 20), 1, 0, **lookup) if lookup else 0.0
    return found


def _has_lookup() -> bool:
    return find_spec("nextword.engine") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", action="append", default=[], metavar="SRC")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.dtype)))
        return
    sources = [HERE, *options.source]
    rounds: dict[str, list[dict[str, float]]] = {source: [] for source in sources}
    for _ in range(options.rounds):
        for source in sources:
            command = [sys.executable, __file__, "--worker", "--dtype", options.dtype]
            environment = {**os.environ, "PYTHONPATH": source}
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rounds[source].append(json.loads(run.stdout.splitlines()[-1]))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    medians = {
        source: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for source, found in rounds.items()
    }
    if options.json:
        print(json.dumps({"medians": medians, "rounds": rounds}, indent=2))
        return
    mine, *others = medians.values()
    print(f"{'':10}{'here':>10}" + "".join(f"{f'source {n}':>12}" for n in range(1, len(sources))) + f"{'ratio':>8}")
    for key, value in mine.items():
        theirs = [other[key] for other in others]
        ratio = f"{value / theirs[0]:8.2f}" if theirs and theirs[0] else ""
        print(f"{key:10}{value:10.1f}" + "".join(f"{other:12.1f}" for other in theirs) + ratio)


if __name__ == "__main__":
    main()
