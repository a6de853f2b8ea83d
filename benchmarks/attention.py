"""How fast is training's causal attention, forward and backward, beside torch's scaled_dot_product_attention?

    python benchmarks/attention.py [--rounds 20] [--threads 1] [--dtype float32|bfloat16] [--json]

Ours and torch's in turn, round after round; the shortest time of each is printed, in seconds of the processor with one
thread, so that neighbours on the machine count little. Queries, keys and values lie side by side, as a layer's matrix
product leaves them. GFLOP/s count the scores that a causal text needs, 4 x width for each forward and 10 backward.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextword.models import fused

SHAPES = {  # batch, heads, key heads, time, head width
    "5.8 M": (16, 4, 4, 256, 64),
    "GPT-2 small": (4, 12, 12, 512, 64),
    "grouped queries": (4, 9, 3, 512, 64),
    "long": (1, 8, 8, 2048, 128),
}
CONTENDERS: dict[str, Callable[..., Tensor]] = {}


def contender(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    CONTENDERS[function.__name__] = function
    return function


@contender
def nextword(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return fused.causal_attention(queries, keys, values, queries.shape[3] ** -0.5)


@contender
def torchs(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
    grouped = queries.shape[2] != keys.shape[2]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    result = work()
    return clock() - began, result


def once(attention: Callable[..., Tensor], qkv: Tensor, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass."""
    _, heads, kv_heads, _, _ = shape
    parts = [part.detach().requires_grad_() for part in qkv.tensor_split((heads, heads + kv_heads), 2)]
    forward, out = seconds(lambda: attention(*parts))
    gradient = torch.ones_like(out, memory_format=torch.contiguous_format)
    backward, _ = seconds(lambda: torch.autograd.grad(out, parts, gradient))
    return forward, backward


def measure(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> dict[str, dict[str, float]]:
    """The shortest times of each contender in milliseconds, and what they are in GFLOP/s."""
    batch, heads, kv_heads, length, width = shape
    qkv = torch.randn(batch, length, heads + 2 * kv_heads, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, attention in CONTENDERS.items():
            times[name].append(once(attention, qkv, shape))
    work = batch * heads * length * (length + 1) / 2 * 4 * width / 1e9
    rows = {}
    for name, measured in times.items():
        forward, backward = (min(column) for column in zip(*measured, strict=True))
        rows[name] = {
            "forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward, "forward_gflops": work / forward,
            "backward_gflops": 2.5 * work / backward,
        }  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", nargs="*", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measure(SHAPES[name], getattr(torch, options.dtype), options.rounds) for name in options.only}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("| | forward, ms (GFLOP/s) | backward, ms (GFLOP/s) | of torch's time |\n|---|---|---|---|")
    for shape, rows in found.items():
        whole = sum(rows["torchs"][key] for key in ("forward_ms", "backward_ms"))
        for name, row in rows.items():
            share = (row["forward_ms"] + row["backward_ms"]) / whole
            print(f"| {shape}: {name} | {row['forward_ms']:.1f} ({row['forward_gflops']:.0f}) |"
                  f" {row['backward_ms']:.1f} ({row['backward_gflops']:.0f}) | {share:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
