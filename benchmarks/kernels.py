"""How near do the compiled kernels come to what this machine's memory and arithmetic allow?

    python benchmarks/kernels.py [--rounds 15] [--level avx2] [--threads 2] [--json]

All matrices of one SmolLM2-135M token are multiplied in the order a model does it, 30 layers and the
head, so that weights come from memory and not from a cache. For every kind of matrix and 1, 8 or 32
vectors: milliseconds a token step (median round), weights read in GB/s, and the share of the memory's
measured speed. Then 600 vectors at once, in GFLOP/s and as a share of torch's float32 product alone.
Rounds of all contenders alternate, so that a slow minute of the machine meets them all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextword import native
from nextword.native.matmul import PackedMatrix, QuantType, linear
from nextword.plan.machine import read_speed

LAYERS = 30
LAYER = {"qkv": (960, 576), "out": (576, 576), "gate+up": (3072, 576), "down": (576, 1536)}
HEAD = (49152, 576)
BATCHES = (1, 8, 32)
PREFILL = 600
BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}  # a block of 32

Product = Callable[[Tensor], Tensor]
Network = list[tuple[str, int, Product, int]]  # name, width, product, bytes of weights


def packed_network(kind: QuantType) -> Network:
    def matrix(name: str, rows: int, width: int, kind: QuantType) -> tuple[str, int, Product, int]:
        blocks = np.random.default_rng(0).integers(0, 256, (rows, width // 32, BYTES[kind]), dtype=np.uint8)
        blocks[..., 1] = 0x20  # scales (and minima) of about 0.01
        blocks[..., 3] = 0x20 if kind == "q4_1" else blocks[..., 3]
        packed = PackedMatrix.pack(kind, blocks.reshape(rows, -1), width)
        return name, width, packed.matmul, packed.nbytes

    layers = [matrix(name, *shape, kind) for _ in range(LAYERS) for name, shape in LAYER.items()]
    return [*layers, matrix("head", *HEAD, "q8_0")]


def float_network(product: Callable[[Tensor, Tensor], Tensor]) -> Network:
    def matrix(name: str, rows: int, width: int) -> tuple[str, int, Product, int]:
        weight = torch.full((rows, width), 0.01)
        return name, width, lambda x: product(x, weight), weight.nbytes

    layers = [matrix(name, *shape) for _ in range(LAYERS) for name, shape in LAYER.items()]
    return [*layers, matrix("head", *HEAD)]


def step_times(network: Network, batch: int) -> dict[str, float]:
    """Seconds that each kind of matrix took in one pass over the network."""
    inputs = {width: torch.randn(batch, width) for width in {width for _, width, _, _ in network}}
    spent: dict[str, float] = defaultdict(float)
    with native.threads_for(batch):
        for name, width, product, _ in network:
            began = time.perf_counter()
            product(inputs[width])
            spent[name] += time.perf_counter() - began
    return spent | {"all": sum(spent.values())}


def decode_table(networks: dict[str, Network], rounds: int, read_gb_s: float) -> list[dict[str, Any]]:
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for contender, network in networks.items():
            for batch in BATCHES:
                step_times(network, batch)
                for name, seconds in step_times(network, batch).items():
                    found[contender, batch, name].append(seconds)
    lines = []
    for (contender, batch, name), seconds in found.items():
        size = sum(nbytes for part, _, _, nbytes in networks[contender] if name in (part, "all"))
        median = statistics.median(seconds)
        line = {"contender": contender, "batch": batch, "matrix": name, "ms": 1e3 * median, "gb_s": size / median / 1e9}
        lines.append(line | {"share": line["gb_s"] / read_gb_s})
    return lines


def prefill_table(networks: dict[str, Network], rounds: int) -> list[dict[str, Any]]:
    """One layer's matrices (and not the head, which reads only the last token) for many vectors at once."""
    found: dict[str, list[float]] = defaultdict(list)
    part = {name: network[: len(LAYER)] for name, network in networks.items()}
    for _ in range(rounds):
        for contender, network in part.items():
            found[contender].append(step_times(network, PREFILL)["all"])
    work = 2 * PREFILL * sum(rows * width for rows, width in LAYER.values())
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    fastest = medians["torch float32"]
    return [{"contender": name, "gflop_s": work / s / 1e9, "share": fastest / s} for name, s in medians.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--level", choices=native.LEVELS, help="use no more than these instructions")
    parser.add_argument("--threads", type=int, help="default: as many as torch uses")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        native.set_threads(options.threads)
    native.limit_level(options.level)
    read_gb_s = read_speed() / 1e9
    networks = {kind: packed_network(kind) for kind in ("q4_1", "q4_0", "q8_0")}
    networks |= {"float32": float_network(linear), "torch float32": float_network(F.linear)}
    with torch.inference_mode():
        decode = decode_table(networks, options.rounds, read_gb_s)
        prefill = prefill_table(networks, options.rounds)
    if options.json:
        print(json.dumps({"read_gb_s": read_gb_s, "level": native.level(), "decode": decode, "prefill": prefill}))
        return
    print(f"memory: {read_gb_s:.1f} GB/s\ninstructions: {native.level()}\n")
    print(f"{'':16}{'vectors':>8} {'matrix':10}{'ms':>8}{'GB/s':>8}{'of memory':>11}")
    for line in decode:
        where = f"{line['contender']:16}{line['batch']:8} {line['matrix']:10}"
        print(f"{where}{line['ms']:8.2f}{line['gb_s']:8.1f}{line['share']:11.0%}")
    print(f"\n{PREFILL} vectors, one layer{'GFLOP/s':>12}{'of torch float32':>20}")
    for line in prefill:
        print(f"{line['contender']:24}{line['gflop_s']:11.0f}{line['share']:20.0%}")


if __name__ == "__main__":
    main()
