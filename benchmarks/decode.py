"""How fast is a prompt read and continued on a CPU, beside llama.cpp and transformers on the same files?

    python benchmarks/decode.py [--only CASE ...] [--rounds 3] [--source OTHER/src ...] [--json]

Needs `pip install transformers llama-cpp-python` (the latter compiles llama.cpp for this machine); a peer that is not
installed is left out. Each contender runs in a process of its own, in turn, round after
round, so that a slow minute of the machine meets all of them. Medians are printed; a peer's figure is its better one
of flash attention on and off. Each `--source`, the `src` folder of another checkout, runs as well.

prefill, decode   tokens a second; decode is in total over all sequences at once
start             process start to its end with one token generated, model file cached by the system, seconds
peak              largest resident size, MB; private: the same without the pages of mapped files
memory            bytes of weights read for a token, as a share of what the cores read from memory at their best
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import contenders
import random_gguf
from contenders import Work

HERE = str(Path(__file__).parents[1] / "src")
SMOLLM2 = "smollm2"  # the default model, Q4_1
FOLDER = "float32"  # the same as a float32 folder
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """What to measure on which model, and the least ratio to the peer's figure that we want."""

    model: str
    targets: dict[str, float]
    prompt: int = 16
    new: int = 64
    batch: int = 1


CASES = {
    "q4_1": Case(SMOLLM2, {"decode": 2.2}, new=128),
    "q4_k": Case("q4_k", {"decode": 1.2, "peak": 1}),
    "q5_k": Case("q5_k", {"decode": 1.2, "peak": 1}, new=48),
    "q8_0": Case("q8_0", {"decode": 1.2, "peak": 1}, new=48),
    "f16": Case("f16", {"decode": 1.2, "peak": 1}, new=32),
    "prefill": Case("q4_k", {"prefill": 1.5}, prompt=512, new=2),
    "x8": Case(SMOLLM2, {"decode": 1.5}, new=32, batch=8),
    "x16": Case(SMOLLM2, {"decode": 1.5}, new=24, batch=16),
    "x8-1b": Case("q4_k", {"decode": 1.5}, new=24, batch=8),
    "x16-1b": Case("q4_k", {"decode": 1.5}, new=24, batch=16),
    "start": Case(SMOLLM2, {"start": 1}),
    "start-1b": Case("q4_k", {"start": 1}),
    "float32": Case(FOLDER, {"prefill": 1.1, "decode": 3}, prompt=512),
    "2048": Case(SMOLLM2, {"prefill": 2, "decode": 2}, prompt=2048, new=32),
    "8000": Case(SMOLLM2, {"prefill": 2, "decode": 2, "peak": 1 / 1.1, "private": 1 / 1.1}, prompt=8000, new=32),
}


class Models:
    """Paths of the models, each made when it is first needed, in the user's cache."""

    def __init__(self) -> None:
        from nextword.weights.catalogue import cache_folder, resolve

        self._folder = Path(cache_folder()) / "benchmarks"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._smollm2 = Path(resolve("smollm2-135m-instruct"))

    def path(self, name: str) -> Path:
        if name == SMOLLM2:
            return self._smollm2
        path = self._folder / ("smollm2-float32" if name == FOLDER else f"llama-1.1b-{name}.gguf")
        if not path.exists():
            print(f"writing {path.name}", file=sys.stderr)
            self._write(name, path)
        return path

    def _write(self, name: str, path: Path) -> None:
        if name == FOLDER:
            convert = [sys.executable, "-m", "nextword", "models", "convert", str(self._smollm2), str(path)]
            subprocess.run(convert, check=True, stdout=sys.stderr)
            return
        part = path.with_suffix(".part")
        random_gguf.write(part, name, self._smollm2)
        part.rename(path)


def contenders_of(case: Case, path: str, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Each contender's name, and its measurement in a process of its own."""
    load = {name: json.loads(value) if value.isdigit() else value for name, value in options.load}
    work = Work(path, case.prompt, case.new, case.batch, load)
    for source in [HERE, *options.source]:
        name = "nextword" if source == HERE else source
        if "start" in case.targets:
            yield name, partial(contenders.nextword_start, path, load, source)
        else:
            yield name, partial(contenders.nextword, work, source)
    if case.model == FOLDER:
        if find_spec("transformers"):
            yield "transformers", partial(contenders.transformers, work)
    elif not find_spec("llama_cpp"):
        return
    elif "start" in case.targets:
        yield "llama.cpp", partial(contenders.llama_cpp_start, path)
    else:
        yield "llama.cpp flash", partial(contenders.llama_cpp, work, True)
        yield "llama.cpp no flash", partial(contenders.llama_cpp, work, False)


def measure(case: Case, path: str, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """Figures of each round by contender."""
    rounds: dict[str, list[Figures]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, work in contenders_of(case, path, options):
            rounds[name].append(work())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rounds


def lines(name: str, rounds: dict[str, list[Figures]], size: int, read_speed: float) -> Iterator[dict[str, Any]]:
    """A line for each figure with a target: medians by contender, the peer's better one, the ratio to it."""
    case = CASES[name]
    for figure, target in case.targets.items():
        medians = {who: statistics.median(one[figure] for one in found) for who, found in rounds.items()}
        less = figure in ("start", "peak", "private")
        peers = [value for who, value in medians.items() if who.startswith(("llama.cpp", "transformers"))]
        peer = (min if less else max)(peers, default=None)
        ours = medians["nextword"]
        ratio = None if not peer else peer / ours if less else ours / peer
        line = {"case": name, "figure": figure, "ours": ours, "peer": peer, "ratio": ratio, "target": target}
        if figure == "decode" and case.batch == 1:
            line["memory"] = size * ours / read_speed
        yield line | {"medians": medians}


def show(line: dict[str, Any]) -> str:
    unit = 1e6 if line["figure"] in ("peak", "private") else 1
    digits = 2 if line["figure"] == "start" else 1

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"

    text = f"{line['case']:10}{line['figure']:9}" + number(line["ours"] / unit, 10, digits)
    text += number(line["peer"] and line["peer"] / unit, 10, digits) + number(line["ratio"], 8, 2)
    text += f"{line['target']:8.2f}" + (f"{line['memory']:8.0%}" if "memory" in line else f"{'':8}")
    others = {who: value for who, value in line["medians"].items() if who != "nextword"}
    return text + "  " + ", ".join(f"{who} {value / unit:.{digits}f}" for who, value in others.items())


def main() -> None:
    options = parse()
    from nextword.plan.machine import read_speed

    speed, models = read_speed(), Models()
    print(f"memory: {speed / 1e9:.1f} GB/s", file=sys.stderr)
    header = f"{'case':10}{'figure':9}{'nextword':>10}{'peer':>10}{'ratio':>8}{'target':>8}{'memory':>8}"
    print(json.dumps({"read_speed": speed}) if options.json else header, flush=True)
    for name in options.only or CASES:
        path = models.path(CASES[name].model)
        size = sum(item.stat().st_size for item in (path.glob("*.safetensors") if path.is_dir() else [path]))
        rounds = measure(CASES[name], str(path), options)
        for line in lines(name, rounds, size, speed):
            print(json.dumps(line) if options.json else show(line), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", action="append", default=[], metavar="SRC")
    parser.add_argument(
        "--load", action="append", default=[], type=lambda text: tuple(text.split("=", 1)), metavar="NAME=VALUE",
        help="an argument of nextword.load, such as kv_dtype=q8_0",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
