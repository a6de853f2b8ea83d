"""How fast is a prompt read and continued, beside transformers and llama.cpp on the same GGUF file?

    python benchmarks/decode.py [--rounds 5] [--json]

Each contender runs in a process of its own, in turn, round after round, so that a slow minute of the
machine meets all of them; medians are printed, and ratios to the first peer. Needs `pip install
transformers accelerate llama-cpp-python` (the last compiles natively; without a compiler it is left out).

cold    process start to the first token printed, model file cached by the system, seconds
prefill 600 tokens read, tokens a second
decode  128 tokens after a prompt of 6, greedy, one sequence, tokens a second
batch8  the same for 8 sequences at once, tokens a second in total
peak    largest resident size of the process that decodes one sequence, MB (1e6 bytes)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

MODEL = "smollm2-135m-instruct"
PROMPT = "The history of the printing press begins with"
LONG, NEW, BATCH = 600, 128, 8


def model_path() -> str:
    from nextword.weights.catalogue import resolve

    return str(resolve(MODEL))


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def nextword_worker(dtype: str) -> dict[str, float]:
    import nextword

    model = nextword.load(MODEL, dtype=dtype)
    ids = model.encode(PROMPT)
    settings: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": NEW,
        "logit_bias": dict.fromkeys(model.tokenizer.stop_ids, -1e9),
    }
    decode = max(model.complete(ids, **settings).timings.decode_tokens_per_second for _ in range(2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    batch = model.complete_all([ids], n=BATCH, **settings)[0].timings.decode_tokens_per_second
    # three prompts: the prefix cache would hold one that was read before
    prompts = [range(start, start + LONG) for start in (1000, 2000, 3000)]
    prefill = min(timed(partial(model.engine.logits, prompt)) for prompt in prompts)
    return {"prefill": LONG / prefill, "decode": decode, "batch8": batch, "peak": peak}


def transformers_worker() -> dict[str, float]:
    import torch

    model, tokenizer = _transformers()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids

    def generate(batch: int) -> float:
        model.generate(ids.repeat(batch, 1), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        first = timed(lambda: model.generate(ids.repeat(batch, 1), max_new_tokens=1, do_sample=False))
        whole = timed(
            lambda: model.generate(ids.repeat(batch, 1), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        )
        return batch * (NEW - 1) / (whole - first)

    decode = max(generate(1), generate(1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    long = torch.arange(1000, 1000 + LONG)[None]
    with torch.inference_mode():
        prefill = min(timed(lambda: model(long, use_cache=True, logits_to_keep=1)) for _ in range(3))
    return {"prefill": LONG / prefill, "decode": decode, "batch8": generate(BATCH), "peak": peak}


def _transformers() -> tuple[Any, Any]:
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = Path(model_path())
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def llama_worker() -> dict[str, float]:
    model = _llama(2048)
    ids = model.tokenize(PROMPT.encode(), add_bos=False)

    def decode() -> float:
        model.reset()
        model.eval(ids)

        def loop() -> None:
            for _ in range(NEW):
                model.eval([model.sample(temp=0.0)])

        return NEW / timed(loop)

    speed = max(decode(), decode())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    def prefill() -> None:
        model.reset()
        model.eval(list(range(1000, 1000 + LONG)))

    return {"prefill": LONG / min(timed(prefill) for _ in range(3)), "decode": speed, "peak": peak}


def _llama(context: int) -> Any:
    import os

    from llama_cpp import Llama

    threads = len(os.sched_getaffinity(0))
    return Llama(model_path(), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)


def first_token(contender: str) -> None:
    """What a user's script does to get one token; run in a process of its own and timed from outside."""
    if contender == "transformers float32":
        model, tokenizer = _transformers()
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        print(tokenizer.decode(model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1:]))
    elif contender == "llama.cpp":
        print(_llama(512)(PROMPT, max_tokens=1, temperature=0)["choices"][0]["text"])
    else:
        from nextword.cli import main

        dtype = contender.partition(" ")[2]
        dtype = "auto" if dtype == "as stored" else dtype
        sys.argv = ["nextword", "complete", "--greedy", "--max-tokens", "1", "--dtype", dtype, PROMPT]
        main()


WORKERS: dict[str, Callable[[], dict[str, float]]] = {
    "nextword as stored": lambda: nextword_worker("auto"),
    "nextword float32": lambda: nextword_worker("float32"),
    "transformers float32": transformers_worker,
    "llama.cpp": llama_worker,
}


def measure(contender: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--contender", contender]
    began = time.perf_counter()
    subprocess.run([*command, "--first"], check=True, capture_output=True)
    cold = time.perf_counter() - began
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"cold": cold, **json.loads(run.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        first_token(options.contender) if options.first else print(json.dumps(WORKERS[options.contender]()))
        return
    present = [name for name in WORKERS if name != "llama.cpp" or importlib.util.find_spec("llama_cpp")]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in present}
    for _ in range(options.rounds):
        for name in present:
            rounds[name].append(measure(name))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    medians = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]} for name, found in rounds.items()
    }
    if options.json:
        print(json.dumps({"medians": medians, "rounds": rounds}, indent=2))
        return
    columns = ("cold", "prefill", "decode", "batch8", "peak")
    print(f"{'':22}" + "".join(f"{column:>10}" for column in columns))
    for name, values in medians.items():
        print(f"{name:22}" + "".join(f"{values[c]:>10.1f}" if c in values else f"{'-':>10}" for c in columns))


if __name__ == "__main__":
    main()
