"""The systems that `decode.py` measures: each reads a prompt and continues it, in a process of its own.

`python benchmarks/contenders.py nextword|transformers|llama_cpp JSON` is that process. It prints JSON: prefill and
decode in tokens a second.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

TEXT = "The history of the printing press begins with"  # 9 tokens
PYTHON = (sys.executable, "-P")  # without this folder in the path: transformers would take kernels.py for a package
STEP = 2048  # tokens that llama.cpp is given at a time
POLL = 0.02  # seconds between two looks at a process's memory


@dataclass(frozen=True)
class Work:
    """Read `prompt` random tokens, then generate `new` tokens, in `batch` sequences at once.

    nextword samples, greedily, and reads the prompt once for all; the others are only given random tokens, or choose
    the largest logit, and read it for each sequence.
    """

    model: str
    prompt: int
    new: int
    batch: int = 1
    load: dict[str, Any] = field(default_factory=dict)  # how to load it: arguments of nextword.load, ...


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
    command = [*PYTHON, __file__, "nextword", json.dumps(asdict(work))]
    return _figures(run(command, {"PYTHONPATH": source}))


def transformers(work: Work) -> dict[str, float]:
    return _figures(run([*PYTHON, __file__, "transformers", json.dumps(asdict(work))]))


def llama_cpp(work: Work, flash_attention: bool) -> dict[str, float]:
    """llama.cpp by its low-level API, as llama-batched-bench calls it."""
    asked = asdict(replace(work, load={"flash_attention": flash_attention}))
    return _figures(run([*PYTHON, __file__, "llama_cpp", json.dumps(asked)]))


def _figures(finished: Run) -> dict[str, float]:
    speeds: dict[str, float] = json.loads(finished.text.splitlines()[-1])
    return speeds | {"peak": finished.peak, "private": finished.private}


def nextword_start(model: str, load: dict[str, Any], source: str) -> dict[str, float]:
    """Process start to the first token and the process's end, seconds; the file is cached by the system."""
    options = [text for name, value in load.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "nextword", "complete", "--greedy", "--max-tokens", "1", "-m", model, *options]
    return {"start": run([*command, TEXT], {"PYTHONPATH": source}).seconds}


def llama_cpp_start(model: str) -> dict[str, float]:
    """The same by llama-cpp-python's own high-level class."""
    return {"start": run([*PYTHON, __file__, "llama_cpp_start", model]).seconds}


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


def run_llama_cpp(work: Work) -> dict[str, float]:
    import llama_cpp as api

    api.llama_backend_init()
    model = api.llama_model_load_from_file(work.model.encode(), api.llama_model_default_params())
    settings = api.llama_context_default_params()
    settings.n_ctx = work.batch * (-(-(work.prompt + work.new) // 256) * 256)  # a sequence's cells are padded to 256
    settings.n_seq_max, settings.n_batch, settings.n_ubatch = work.batch, STEP, 512
    settings.n_threads = settings.n_threads_batch = cores()
    settings.flash_attn_type = int(work.load["flash_attention"])
    context, batch = api.llama_init_from_model(model, settings), api.llama_batch_init(STEP, 0, 1)

    def step(rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows are token, position, sequence, and whether to return logits."""
        for start in range(0, len(rows), STEP):
            batch.n_tokens = len(rows[start : start + STEP])
            for at, (token, position, sequence, wanted) in enumerate(rows[start : start + STEP]):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            if api.llama_decode(context, batch):
                raise SystemExit("llama_decode failed")
        api.llama_synchronize(context)

    draw, sequences, last = random.Random(0), range(work.batch), work.prompt - 1
    step([(500 + at, at, 0, False) for at in range(16)])  # warm-up
    api.llama_memory_clear(api.llama_get_memory(context), False)
    began = time.perf_counter()
    step([(draw.randrange(40000), at, one, at == last) for one in sequences for at in range(work.prompt)])
    read = time.perf_counter()
    for at in range(work.new - 1):
        step([(draw.randrange(40000), work.prompt + at, one, True) for one in sequences])
    ended = time.perf_counter()
    return {
        "prefill": work.batch * work.prompt / (read - began),
        "decode": work.batch * (work.new - 1) / (ended - read),
    }


def run_llama_cpp_start(path: str) -> None:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=512, n_threads=cores(), n_threads_batch=cores(), verbose=False)
    print(model(TEXT, max_tokens=1, temperature=0)["choices"][0]["text"])


def main() -> None:
    what, argument = sys.argv[1:]
    if what == "llama_cpp_start":
        run_llama_cpp_start(argument)
        return
    works: dict[str, Callable[[Work], dict[str, float]]] = {
        "nextword": run_nextword, "transformers": run_transformers, "llama_cpp": run_llama_cpp,
    }  # fmt: skip
    print(json.dumps(works[what](Work(**json.loads(argument)))))


if __name__ == "__main__":
    main()
