"""The systems that `decode.py` measures: each reads a prompt and continues it, in a process of its own.

`python benchmarks/contenders.py nextword|transformers JSON` is that process for the two in Python. It prints JSON:
prefill and decode in tokens a second. llama.cpp is its own llama-batched-bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TEXT = "The history of the printing press begins with"  # 9 tokens
POLL = 0.02  # seconds between two looks at a process's memory


@dataclass(frozen=True)
class Work:
    """Read `prompt` random tokens, then generate `new` tokens, in `batch` sequences at once."""

    model: str
    prompt: int
    new: int
    batch: int = 1
    load: dict[str, Any] = field(default_factory=dict)  # arguments of nextword.load


@dataclass(frozen=True)
class Run:
    """A finished process. `peak` is its largest resident size; `private` the same without mapped file pages, bytes."""

    text: str
    seconds: float
    peak: int
    private: int


def run(command: list[str], environment: dict[str, str] | None = None) -> Run:
    environment = {**os.environ, **(environment or {})}
    environment.pop("OMP_NUM_THREADS", None)  # each at its best
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    sizes = {"VmHWM": 0, "RssAnon": 0}
    watch = threading.Thread(target=_watch, args=(process, sizes))
    watch.start()
    text, errors = process.communicate()
    seconds = time.perf_counter() - began
    watch.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return Run(text, seconds, sizes["VmHWM"], sizes["RssAnon"])


def _watch(process: subprocess.Popen[str], sizes: dict[str, int]) -> None:
    """Keep the largest of each of /proc's figures while the process runs."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            return
        for name in sizes:
            if name in lines:
                sizes[name] = max(sizes[name], int(lines[name].split()[0]) * 1024)
        time.sleep(POLL)


def nextword(work: Work, source: str) -> dict[str, float]:
    """`source`: the `src` folder of the checkout to run."""
    command = [sys.executable, __file__, "nextword", json.dumps(asdict(work))]
    return _figures(run(command, {"PYTHONPATH": source}))


def transformers(work: Work) -> dict[str, float]:
    return _figures(run([sys.executable, __file__, "transformers", json.dumps(asdict(work))]))


def llama_cpp(work: Work, folder: Path, flash_attention: str) -> dict[str, float]:
    """`folder` holds llama-batched-bench; `flash_attention` is on or off."""
    context = -(-(work.prompt + work.new) // 256) * 256  # a sequence's cells come in blocks of 256
    return _figures(
        run([
            str(folder / "llama-batched-bench"), "-m", work.model, "-t", str(cores()), "-fa", flash_attention,
            "-c", str(work.batch * context), "-npp", str(work.prompt), "-ntg", str(work.new), "-npl", str(work.batch),
            "--output-format", "jsonl",
        ])
    )  # fmt: skip


def _figures(finished: Run) -> dict[str, float]:
    line = json.loads([line for line in finished.text.splitlines() if line.startswith("{")][-1])
    return {
        "prefill": line.get("speed_pp", line.get("prefill")),
        "decode": line.get("speed_tg", line.get("decode")),
        "peak": finished.peak,
        "private": finished.private,
    }


def nextword_start(model: str, load: dict[str, Any], source: str) -> dict[str, float]:
    """Process start to the first token and the process's end, seconds; the file is cached by the system."""
    options = [text for name, value in load.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "nextword", "complete", "--greedy", "--max-tokens", "1", "-m", model, *options]
    return {"start": run([*command, TEXT], {"PYTHONPATH": source}).seconds}


def llama_cpp_start(model: str, folder: Path) -> dict[str, float]:
    """The same: 9 tokens are read and one is generated, without a warm-up."""
    command = [str(folder / "llama-bench"), "-m", model, "-t", str(cores()), "-r", "1", "--no-warmup"]
    return {"start": run([*command, "-p", "0", "-n", "0", "-pg", "9,1"]).seconds}


def cores() -> int:
    return len(os.sched_getaffinity(0))


# ---- what runs in the process


def run_nextword(work: Work) -> dict[str, float]:
    import nextword

    model = nextword.load(work.model, **work.load)
    model.complete([*range(500, 516)], max_tokens=4, temperature=0)  # warm-up
    for seed in range(20):  # a model may end its text early: another prompt, then
        prompt = np.random.default_rng(seed).integers(1000, 40000, work.prompt).tolist()
        done = model.complete_all([prompt], n=work.batch, max_tokens=work.new, temperature=0)
        if all(len(one.tokens) == work.new for one in done):
            break
    timings = done[0].timings
    steps = work.new - 1  # the first token comes from the prompt's logits
    decode = work.batch * steps / timings.decode_seconds if steps else 0.0
    return {"prefill": timings.prefill_tokens_per_second, "decode": decode}


def run_transformers(work: Work) -> dict[str, float]:
    """A plain greedy loop with a key-value cache: `generate` without its overhead."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()

    def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    with torch.inference_mode():
        step(*step(torch.arange(500, 516)[None], None))  # warm-up
        began = time.perf_counter()
        token, cache = step(torch.randint(1000, 40000, (work.batch, work.prompt)), None)
        read = time.perf_counter()
        for _ in range(work.new - 1):
            token, cache = step(token, cache)
        ended = time.perf_counter()
    return {
        "prefill": work.batch * work.prompt / (read - began),
        "decode": work.batch * (work.new - 1) / (ended - read),
    }


if __name__ == "__main__":
    RUN: dict[str, Callable[[Work], dict[str, float]]] = {"nextword": run_nextword, "transformers": run_transformers}
    print(json.dumps(RUN[sys.argv[1]](Work(**json.loads(sys.argv[2])))))
