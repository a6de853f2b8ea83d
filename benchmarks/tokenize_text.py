"""How fast is text prepared? `nextword.data.prepare` beside the tokenizers library's `encode_batch_fast` alone.

    python benchmarks/tokenize_text.py DATA... [--rounds 5] [--vocabulary 4096]

Both tokenize the same documents with the same tokenizer, trained on them, in turn. Preparing also reads the files,
hashes and splits the documents, counts and writes. The ratio is of CPU time (user and system, the least of all rounds),
which other processes disturb less than the time that passes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nextword.data import find_sources, prepare
from nextword.data.reader import Reader
from nextword.data.tokenizing import BATCH
from nextword.plan.run_config import DataConfig


def encode_alone(engine: object, texts: list[str]) -> None:
    """In batches of as many characters as `prepare` has."""
    batch, size = list[str](), 0
    for text in [*texts, ""]:
        batch.append(text)
        size += len(text)
        if size >= BATCH or not text:
            engine.encode_batch_fast(batch, add_special_tokens=False)  # type: ignore[attr-defined]
            batch, size = [], 0


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=4096)
    options = parser.parse_args()
    sources, config = find_sources(options.data), DataConfig(vocabulary=options.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = prepare(sources, Path(folder) / "first", config).tokenizer()
        texts = [document.text for document in Reader(sources, config).texts()]
        size = sum(len(text.encode()) for text in texts) / 1e6
        ways = {
            "nextword data prepare": lambda number: prepare(sources, Path(folder) / str(number), config, tokenizer),
            "encode_batch_fast alone": lambda number: encode_alone(tokenizer._engine, texts),
        }
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for number in range(options.rounds):
            for name, way in ways.items():
                spent = measured(lambda way=way, number=number: way(number))  # type: ignore[misc]
                best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    for name, (cpu, seconds) in best.items():
        print(f"{name:<24} {size / cpu:6.2f} MB per CPU second, {size / seconds:6.2f} MB/s")
    ours, alone = (best[name][0] for name in ways)
    print(f"{alone / ours:.3f} of its speed, on {size:.1f} MB in {len(texts):,} texts")


if __name__ == "__main__":
    main()
