"""How fast are decoding, prefill and a training step on a GPU in bfloat16, beside transformers?

    python benchmarks/gpu.py [--rounds 3] [--only WORK ...] [--json] [--device cpu --small]

One Llama-shaped model of 1.1 B parameters with random weights, so that nothing is downloaded; training also at 124 M.
Each contender runs in a process of its own, in turn; medians are printed. `--device cpu --small` runs every path with
a tiny model, to see that it works.

decode1, 8, 64   one token for each of that many sequences per step behind 512, tokens a second in total; logits go to
                 the host, where nextword samples; transformers takes the largest on the device
prefill          4 prompts of 2048 tokens, tokens a second
train124m, 1b    forward, backward, clipping and AdamW under bfloat16 autocast, attention by torch's flash kernels;
                 tokens a second, and the share of the bfloat16 matrix products' peak measured on this device
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WORKS = ("decode1", "decode8", "decode64", "prefill", "train124m", "train1b")
CONTENDERS = ("nextword", "nextword compiled", "transformers", "transformers compiled")
SHAPES = {  # layers, width, heads, kv_heads, mlp width, vocabulary
    "124m": (12, 768, 12, 12, 2048, 50304), "1b": (16, 2048, 32, 8, 8192, 49152), "small": (2, 64, 4, 2, 128, 512),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Sizes of the work; `small` is for a run on a CPU."""

    device: str
    small: bool

    @property
    def cached(self) -> int:
        return 16 if self.small else 512

    @property
    def steps(self) -> int:
        return 4 if self.small else 64

    @property
    def prompts(self) -> tuple[int, int]:
        return (2, 32) if self.small else (4, 2048)

    @property
    def rows(self) -> tuple[int, int]:
        """Of a training step, and their length."""
        return (2, 32) if self.small else (8, 1024)

    def shape(self, name: str) -> tuple[int, ...]:
        return SHAPES["small" if self.small else name]

    def synchronize(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began


def spec_of(shape: tuple[int, ...]) -> Any:
    from nextword.spec import ModelSpec

    layers, width, heads, kv_heads, mlp_width, vocabulary = shape
    return ModelSpec("transformer", vocabulary, width, layers, 4096, heads=heads, kv_heads=kv_heads,
                     head_width=width // heads, mlp_width=mlp_width)  # fmt: skip


def llama_of(shape: tuple[int, ...]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, kv_heads, mlp_width, vocabulary = shape
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp_width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096,
        tie_word_embeddings=True,
    ))  # fmt: skip


# ---- inference


class Sequences:
    """A nextword backend and the pages of `count` sequences."""

    def __init__(self, setting: Setting, count: int, length: int) -> None:
        import torch

        from nextword.models import build
        from nextword.models.backend import TorchBackend
        from nextword.models.layers import Norm

        model = build(spec_of(setting.shape("1b"))).eval().requires_grad_(False).to(setting.device, torch.bfloat16)
        for module in model.modules():
            if isinstance(module, Norm):
                module.float()  # as when weights are loaded
        self.backend = TorchBackend(model)
        pages = -(-length // self.backend.page_size)
        self.tables = np.arange(count * pages, dtype=np.int32).reshape(count, pages)
        self.backend.allocate(count * pages)

    def step(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """Logits (sequences, vocabulary) behind the last of `tokens` (sequences, time), which begin at `start`."""
        from nextword.backend import Batch

        count, time_ = tokens.shape
        none = np.empty(0, np.int64)
        return self.backend.forward(
            Batch(
                tokens.reshape(-1), np.tile(np.arange(start, start + time_), count), np.repeat(np.arange(count), time_),
                self.tables, np.arange(1, count + 1) * time_ - 1, none, none,
            )
        ).logits  # fmt: skip


def random_ids(setting: Setting, count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, setting.shape("1b")[-1], (count, length))


def nextword_decode(setting: Setting, count: int) -> float:
    sequences = Sequences(setting, count, setting.cached + 2 * setting.steps)
    ids = random_ids(setting, count, setting.cached)
    for row in range(count):  # one by one: a step of prompts is a few thousand tokens
        sequences.step(ids[row : row + 1], 0) if count == 1 else _prefill_row(sequences, ids, row)
    token = ids[:, -1:]

    def decode(start: int) -> None:
        nonlocal token
        for at in range(start, start + setting.steps):
            token = sequences.step(token, at).argmax(1)[:, None]

    decode(setting.cached)  # captures the graphs
    return count * setting.steps / setting.seconds(lambda: decode(setting.cached + setting.steps))


def _prefill_row(sequences: Sequences, ids: np.ndarray, row: int) -> None:
    tables = sequences.tables
    sequences.tables = tables[row : row + 1]
    sequences.step(ids[row : row + 1], 0)
    sequences.tables = tables


def nextword_prefill(setting: Setting) -> float:
    count, length = setting.prompts
    sequences, ids = Sequences(setting, count, length), random_ids(setting, count, length)

    def read() -> None:
        for row in range(count):
            _prefill_row(sequences, ids, row)

    read()
    return count * length / setting.seconds(read)


def transformers_decode(setting: Setting, count: int, compiled: bool) -> float:
    """`generate` twice, its longer run less its shorter one; compiled: its static cache and CUDA graphs."""
    import torch

    model = llama_of(setting.shape("1b")).eval().to(setting.device, torch.bfloat16)
    ids = torch.from_numpy(random_ids(setting, count, setting.cached)).to(setting.device)
    cache = {"cache_implementation": "static"} if compiled else {}

    def generate(new: int) -> Any:
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0, **cache,
        )  # fmt: skip

    for new in (setting.steps + 1, 2):
        generate(new)
    longer, shorter = (setting.seconds(lambda new=new: generate(new)) for new in (setting.steps + 1, 2))
    return count * (setting.steps - 1) / (longer - shorter)


def transformers_prefill(setting: Setting, compiled: bool) -> float:
    import torch

    model = llama_of(setting.shape("1b")).eval().to(setting.device, torch.bfloat16)
    model = torch.compile(model) if compiled else model
    ids = torch.from_numpy(random_ids(setting, *setting.prompts)).to(setting.device)
    with torch.inference_mode():
        model(ids, logits_to_keep=1)
        return ids.numel() / setting.seconds(lambda: model(ids, logits_to_keep=1))


# ---- training


def nextword_train(setting: Setting, name: str, compiled: bool) -> Callable[[], None]:
    import torch

    from nextword.plan.run_config import ModelConfig, RunConfig, RunSettings, TrainConfig
    from nextword.train.learner import Learner
    from nextword.train.loss_module import Placed, new_model

    rows, context = setting.rows
    train = TrainConfig(steps=1, context=context, batch_size=rows, micro_batch=rows, learning_rate=1e-4, dtype="amp")
    config = RunConfig(ModelConfig(spec=spec_of(setting.shape(name))), train=train, run=RunSettings(compile=compiled))
    learner = Learner(config, new_model(config), torch.device(setting.device))
    ids = torch.from_numpy(random_ids(setting, rows, context + 1)).to(setting.device)
    batch = Placed(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None)

    def step() -> None:
        learner.backward(batch, rows * context)
        learner.clip()
        learner.update()

    return step


def transformers_train(setting: Setting, name: str, compiled: bool) -> Callable[[], None]:
    import torch
    import torch.nn.functional as F

    rows, context = setting.rows
    model = llama_of(setting.shape(name)).to(setting.device).train()
    vocabulary = model.config.vocab_size
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(random_ids(setting, rows, context + 1)).to(setting.device)

    def step() -> None:
        with torch.autocast(setting.device.partition(":")[0], torch.bfloat16):
            logits = run(ids[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.float().view(-1, vocabulary), ids[:, 1:].reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train_figures(setting: Setting, name: str, step: Callable[[], None]) -> dict[str, float]:
    import torch

    from nextword.train.peak import measured_peak

    rows, context = setting.rows
    layers, width, heads, kv_heads, mlp_width, vocabulary = setting.shape(name)
    head_width = width // heads
    layer = width * head_width * (2 * heads + 2 * kv_heads) + 3 * width * mlp_width
    flops = 6 * (layers * layer + vocabulary * width) + 12 * layers * heads * head_width * context  # per token
    for _ in range(3):
        step()
    steps = [setting.seconds(step) for _ in range(2 if setting.small else 10)]
    speed = rows * context / statistics.median(steps)
    if setting.device == "cpu":  # without bfloat16 units a product takes minutes
        return {"tokens_per_second": speed}
    with tempfile.TemporaryDirectory() as cache:
        peak = measured_peak(torch.device(setting.device), "amp", Path(cache)).flops
    return {"tokens_per_second": speed, "share_of_peak": speed * flops / peak}


# ---- contenders in turn


def worker(contender: str, work: str, setting: Setting) -> dict[str, float]:
    ours, compiled = contender.startswith("nextword"), contender.endswith("compiled")
    if work.startswith("train"):
        make = nextword_train if ours else transformers_train
        name = work.removeprefix("train")
        return train_figures(setting, name, make(setting, name, compiled))
    if work == "prefill":
        speed = nextword_prefill(setting) if ours else transformers_prefill(setting, compiled)
    else:
        count = int(work.removeprefix("decode"))
        speed = nextword_decode(setting, count) if ours else transformers_decode(setting, count, compiled)
    return {"tokens_per_second": speed}


def measure(contender: str, work: str, options: argparse.Namespace) -> dict[str, float] | None:
    # -P: transformers would take this folder's kernels.py for a package of that name
    command = [sys.executable, "-P", __file__, "--worker", contender, "--only", work, "--device", options.device]
    done = subprocess.run([*command, *["--small"] * options.small], capture_output=True, text=True)
    if done.returncode:
        print(f"{work}, {contender}: left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def runs(contender: str, work: str) -> bool:
    """Compiling is nextword's way to train only: its decoding captures graphs by itself."""
    return contender != "nextword compiled" or work.startswith("train")


def in_turn(work: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians by contender."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    names = [name for name in CONTENDERS if runs(name, work)]
    for _ in range(options.rounds):
        for name in [*names]:
            figures = measure(name, work, options)
            found[name].append(figures) if figures else names.remove(name)
    return {name: {key: statistics.median(one[key] for one in rows) for key in rows[0]} for name, rows in found.items()}


def show(work: str, found: dict[str, dict[str, float]]) -> None:
    peers = [one["tokens_per_second"] for name, one in found.items() if name.startswith("transformers")]
    for name, figures in found.items():
        speed, share = figures["tokens_per_second"], figures.get("share_of_peak")
        ratio = f"{speed / max(peers):8.2f}" if peers else f"{'-':>8}"
        print(f"{work:12}{name:24}{speed:12.0f}{ratio}" + (f"{share:8.0%}" if share else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="WORK", default=WORKS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker, options.only[0], Setting(options.device, options.small))))
        return
    print("" if options.json else f"{'work':12}{'':24}{'tokens/s':>12}{'to peer':>8}{'of peak':>8}")
    results = {}
    for work in options.only:
        results[work] = in_turn(work, options)
        if not options.json:
            show(work, results[work])
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
