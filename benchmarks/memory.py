"""Is a run's planned peak memory right? Real runs, each in a process of its own, beside what their plans said.

    python benchmarks/memory.py [--only WORDS ...] [--list] [--json]

Every kind of model, in float32 and with bfloat16 products, on one and two threads, 0.1 to 30 million parameters,
contexts of 64 to 1,024, recomputation, other optimizers, frequent checkpoints, without the compiled kernels, and
fine-tuning of a small model that the first run makes. The text is made up; runs last seconds.

formula   before anything ran: this process's libraries and a formula
probed    after some timed steps of the run, in the process that will train it
measured  the run's peak resident size
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

BASE = "transformer 1M, 256, fp32"  # which `lora` and `fine-tuned` start from
_EAGER = "from nextword.native import bindings; bindings.find_library = lambda: None; "


@dataclass(frozen=True)
class Case:
    """Options of one run of `nextword train`."""

    name: str
    options: str
    compiled: bool = True  # with the compiled kernels


@dataclass(frozen=True)
class Result:
    """Bytes; None where the plan did not say."""

    name: str
    formula: float
    probed: float
    measured: float

    def error(self, what: str) -> float:
        """Predicted / measured - 1."""
        return float(getattr(self, what)) / self.measured - 1


def _case(name: str, model: str, rows: int, more: str = "", compiled: bool = True) -> Case:
    once = "" if "checkpoint_every" in more else "--set run.checkpoint_every=0"  # as in a long run, hardly ever
    return Case(name, f"{model} --batch-size {rows} {once} {more}", compiled)


def cases() -> list[Case]:
    """All runs; the base of the fine-tuned ones first."""
    sizes = (("0.1M", 64, 64), ("1M", 256, 16), ("3M", 256, 8), ("3M", 1024, 4), ("30M", 64, 4))  # context, rows
    kinds = (("lstm", "0.3M", 64, 32), ("lstm", "3M", 256, 8), ("lstm", "12M", 64, 8), ("gru", "0.3M", 64, 32),
             ("gru", "3M", 256, 8), ("rnn", "0.3M", 64, 32), ("rnn", "3M", 256, 8))  # fmt: skip
    three = "--params 3M --context 256 --train-dtype"
    return [
        *(_case(f"transformer {size}, {context:,}, {dtype}",
                f"--params {size} --context {context} --train-dtype {dtype}", rows)
          for dtype in ("fp32", "amp") for size, context, rows in sizes),
        _case("one thread", f"{three} fp32", 8, "--set run.threads=1"),
        _case("two threads", f"{three} fp32", 8, "--set run.threads=2"),
        _case("four micro-batches", f"{three} fp32", 16, "--set train.micro_batch=4"),
        _case("selective", f"{three} fp32", 8, "--set train.recompute=selective"),
        _case("full", f"{three} fp32", 8, "--set train.recompute=full"),
        _case("full, amp", f"{three} amp", 8, "--set train.recompute=full"),
        _case("muon", f"{three} fp32", 8, "--set train.optimizer=muon"),
        _case("lion", f"{three} fp32", 8, "--set train.optimizer=lion"),
        _case("checkpoints", f"{three} fp32", 8, "--set run.checkpoint_every=2"),
        _case("masked documents", f"{three} fp32", 8, "--set train.mask_documents=true"),
        _case("without kernels", f"{three} fp32", 8, compiled=False),
        _case("without kernels, amp", f"{three} amp", 8, compiled=False),
        *(_case(f"{kind} {size}, {context}, {dtype}",
                f"--arch {kind} --params {size} --context {context} --train-dtype {dtype}", rows)
          for dtype in ("fp32", "amp") for kind, size, context, rows in kinds if dtype == "fp32" or size == "3M"),
        _case("fine-tuned", "--model BASE --train-dtype fp32", 8),
        _case("lora", "--model BASE --lora 8 --train-dtype fp32", 8),
        _case("lora, amp", "--model BASE --lora 8 --train-dtype amp", 8),
    ]  # fmt: skip


def write_text(path: Path) -> None:
    """Four megabytes of made-up words, as frequent as words are (Zipf), in documents."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    for number in range(100):
        text = " ".join(draw.choices(words, weights, k=7_000))
        (path / f"{number:03}.txt").write_text(text, encoding="utf-8")


def run(case: Case, folder: Path, steps: int) -> Result:
    """One run in a fresh process."""
    out, base = (folder / name.replace(" ", "-").replace(",", "") for name in (case.name, BASE))
    arguments = [
        "train", str(folder / "text"), "--steps", str(steps), *case.options.replace("BASE", str(base)).split(),
        "--out", str(out), "--json",
    ]  # fmt: skip
    code = f"{'' if case.compiled else _EAGER}from nextword.cli import main; raise SystemExit(main())"
    environment = os.environ | {"NEXTWORD_CACHE": str(folder / "cache"), "NEXTWORD_LEDGER": str(folder / "ledger")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    (folder / "ledger").unlink(missing_ok=True)  # no run corrects another's plan
    if done.returncode:
        raise SystemExit(f"{case.name}: {done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    predicted, measured = report["predicted"], report["measured"]
    return Result(case.name, predicted["formula_memory"], predicted["memory"], measured["memory"])


def main() -> None:
    """Run the cases in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", help="cases whose name contains this; repeatable")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = [case for case in cases() if any(word in case.name for word in given.only or [""])]
    if given.list:
        print("\n".join(f"{case.name}: {case.options}" for case in chosen))
        return
    if any("BASE" in case.options for case in chosen) and BASE not in (case.name for case in chosen):
        chosen.insert(0, next(case for case in cases() if case.name == BASE))
    results = []
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "text").mkdir()
        write_text(folder)
        for case in chosen:
            results.append(run(case, Path(name), given.steps))
            print(f"{case.name}: {results[-1]}", file=sys.stderr)
    print(json.dumps([asdict(result) for result in results], indent=2) if given.json else table(results))


def table(results: list[Result]) -> str:
    """A row a run, in MB, and the largest errors."""
    lines = [f"{'':28}{'formula':>9}{'probed':>9}{'measured':>9}{'formula off':>13}{'probed off':>12}"]
    for result in results:
        sizes = "".join(f"{size / 1e6:9,.0f}" for size in (result.formula, result.probed, result.measured))
        lines.append(f"{result.name:28}{sizes}{result.error('formula'):+13.1%}{result.error('probed'):+12.1%}")
    for what in ("formula", "probed"):
        off = [abs(result.error(what)) for result in results]
        lines.append(f"{what}: median error {statistics.median(off):.1%}, largest {max(off):.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
