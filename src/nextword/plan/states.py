"""Memory of weights, gradients and optimizer states, with LoRA and sharding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..base import UsageError
from ..spec import ModelSpec
from .figure import Figure, Parts, figure
from .shapes import TensorShape, separate, tensors

Optimizer = Literal["adamw", "adam8bit", "adafactor", "muon", "lion", "momentum", "sgd"]
Precision = Literal["fp32", "mixed", "amp", "bf16"]
Shard = Literal["none", "ddp", "zero1", "zero2", "fsdp", "hybrid"]
SHARDED: tuple[Shard, ...] = ("fsdp", "hybrid")  # weights too

_ZERO = "Rajbhandari et al. 2020, 1910.02054, §3 and §5"


@dataclass(frozen=True)
class Widths:
    """Bytes per parameter in a precision. `copy`: 16-bit copies of matrices for products."""

    weight: float
    master: float
    gradient: float
    state: float
    copy: float
    compute: float  # of activations
    meaning: str


PRECISIONS: dict[Precision, Widths] = {
    "fp32": Widths(4, 0, 4, 4, 0, 4, "everything in float32"),
    "mixed": Widths(
        2, 4, 2, 4, 0, 2, "bf16 weights and gradients, float32 master weights and states (ZeRO, DeepSpeed)"
    ),
    "amp": Widths(4, 0, 4, 4, 2, 2, "float32 weights and gradients, bf16 copies for the products (torch.autocast)"),
    "bf16": Widths(2, 0, 2, 2, 0, 2, "everything in bfloat16; small updates are lost in rounding"),
}
OPTIMIZERS: dict[Optimizer, str] = {
    "adamw": "two states a parameter: 8 bytes in float32 (Loshchilov and Hutter, 1711.05101)",
    "adam8bit": "two states of 1 byte, a float32 scale per 256; norms and biases in 32 bits (2110.02861)",
    "adafactor": "a row and a column of each matrix (Shazeer and Stern, 1804.04235)",
    "muon": "one state for the layers' matrices; embedding, head and norms stay on AdamW (Jordan et al. 2024)",
    "lion": "one state a parameter (Chen et al., 2302.06675)",
    "momentum": "SGD with momentum: one state a parameter",
    "sgd": "plain SGD keeps nothing",
}
BASES: dict[str, tuple[float, str]] = {  # a frozen base under LoRA: bytes a parameter
    "fp32": (4, "float32"),
    "bf16": (2, "bfloat16"),
    "int8": (1, "int8"),
    "nf4": (4.127 / 8, "NF4 in blocks of 64, double-quantised (Dettmers et al., 2305.14314): 4.127 bits"),
}
_ENDS = ("embedding", "positions", "head", "norms")


@dataclass(frozen=True)
class States(Parts):
    """Bytes on each device that depend only on the parameters."""

    trained: int  # parameters that get a gradient


def states(
    spec: ModelSpec,
    *,
    optimizer: Optimizer = "adamw",
    precision: Precision = "mixed",
    shard: Shard = "none",
    devices: int = 1,
    lora: int = 0,
    lora_targets: tuple[str, ...] = (),
    base: str = "bf16",
) -> States:
    """Bytes of weights, gradients and optimizer states per device, on the one with the most.

    `devices` is the number that share a copy: with "hybrid", those of a machine.
    `lora` is the rank of adapters (0: all parameters are trained) on the matrices in `lora_targets` (default: every
    matrix of the layers), `base` the type of the frozen weights. Raises UsageError for invalid sizes.
    """
    if devices < 1 or lora < 0:
        raise UsageError(f"training needs at least one device and a rank of 0 or more, not {devices} and {lora}")
    shapes = [tensor for tensor in tensors(spec) if tensor.copies]
    trained = adapters(spec, lora, lora_targets) if lora else shapes
    parts = _states(trained, optimizer, PRECISIONS[precision], shard, devices)
    if lora:
        parts.insert(0, _frozen(shapes, base, shard, devices))
        if shard not in SHARDED and BASES[base][0] == 4:
            parts.append(_frozen_copies(shapes, PRECISIONS[precision]))
    if shard in SHARDED and devices > 1:
        parts.append(_gathered(spec, shapes, PRECISIONS[precision], BASES[base][0] if lora else 0))
    return States(tuple(part for part in parts if part.value), sum(tensor.numbers for tensor in trained))


def adapters(spec: ModelSpec, rank: int, targets: tuple[str, ...] = ()) -> list[TensorShape]:
    """LoRA's pairs of narrow matrices, r x in and out x r, one for each matrix (Hu et al., 2106.09685).

    Without `targets`, every matrix of the layers, as in nextword, where queries, keys and values share a pair, and
    gate and up share one. `targets` names separate matrices (LORA_TARGETS, or "all"), as in PEFT: Llama 3 8B with
    rank 16 has 35.7 M without and 41.9 M with "all". Raises UsageError for a rank above a matrix's and for matrices
    that the model does not have.
    """
    pairs = []
    for tensor in separate(spec, targets) if targets else tensors(spec):
        if tensor.is_matrix and tensor.part not in (*_ENDS, "router"):
            rows, columns = tensor.shape
            if rank > min(rows, columns):
                raise UsageError(
                    f"rank {rank} is above the {min(rows, columns)} of {tensor.name}; choose a lower --lora"
                )
            pairs += [
                TensorShape(tensor.part, f"{tensor.name}, A", (rank, columns), tensor.copies, tensor.active, True),
                TensorShape(tensor.part, f"{tensor.name}, B", (rows, rank), tensor.copies, tensor.active, True),
            ]
    return pairs


def _states(
    trained: list[TensorShape], optimizer: Optimizer, widths: Widths, shard: Shard, devices: int
) -> list[Figure]:
    multiplied = sum(tensor.numbers for tensor in trained if tensor.is_matrix)
    if shard in SHARDED:
        trained, devices = _rows_of(trained, devices), 1
    count = sum(tensor.numbers for tensor in trained)
    over_gradients = devices if shard == "zero2" else 1
    over_states = devices if shard in ("zero1", "zero2") else 1
    lines = (
        ("weights", widths.weight, 1),
        ("master weights", widths.master, over_states),
        ("gradients", widths.gradient, over_gradients),
    )
    parts = [
        *(figure(name, "bytes", "parameters * bytes_each / devices", _ZERO, parameters=count, bytes_each=width,
                 devices=over) for name, width, over in lines),
        figure("optimizer states", "bytes", "all_states / devices", f"{OPTIMIZERS[optimizer]}; {_ZERO}",
               all_states=optimizer_bytes(trained, optimizer, widths.state), devices=over_states),
    ]  # fmt: skip
    if shard not in SHARDED:  # with FSDP the copies are the gathered layers
        parts.append(figure("16-bit copies of weights", "bytes", "matrices * bytes_each", "torch.autocast's cache",
                            matrices=multiplied, bytes_each=widths.copy))  # fmt: skip
    return parts


def _rows_of(shapes: list[TensorShape], devices: int) -> list[TensorShape]:
    """The rows that FSDP2 gives to the first of `devices`: each tensor's rows are divided, rounded up."""
    return [replace(tensor, shape=(math.ceil(tensor.shape[0] / devices), *tensor.shape[1:])) for tensor in shapes]


def optimizer_bytes(trained: list[TensorShape], optimizer: Optimizer, width: float = 4) -> float:
    """Bytes of the optimizer's states, with `width` bytes per number."""
    return sum(_optimizer_bytes(tensor, optimizer, width) for tensor in trained)


def _optimizer_bytes(tensor: TensorShape, optimizer: Optimizer, width: float) -> float:
    if optimizer == "sgd":
        return 0
    if optimizer in ("lion", "momentum"):
        return width * tensor.numbers
    if optimizer == "adam8bit" and tensor.is_matrix:
        return tensor.numbers * (2 + 2 * 4 / 256)
    if optimizer == "adafactor":
        return width * tensor.copies * (sum(tensor.shape) if tensor.is_matrix else math.prod(tensor.shape))
    if optimizer == "muon" and tensor.is_matrix and tensor.part not in _ENDS:
        return width * tensor.numbers
    return 2 * width * tensor.numbers


def _frozen(shapes: list[TensorShape], base: str, shard: Shard, devices: int) -> Figure:
    width, meaning = BASES[base]
    count = sum(tensor.numbers for tensor in (_rows_of(shapes, devices) if shard in SHARDED else shapes))
    return figure("frozen weights", "bytes", "parameters * bytes_each", meaning, parameters=count, bytes_each=width)


def _frozen_copies(shapes: list[TensorShape], widths: Widths) -> Figure:
    count = sum(tensor.numbers for tensor in shapes if tensor.is_matrix)
    source = "torch.autocast casts frozen weights for each product; the backward pass keeps the copies"
    inputs = {"matrices": count, "bytes_each": widths.copy}
    return figure("16-bit copies of frozen weights", "bytes", "matrices * bytes_each", source, **inputs)


def _gathered(spec: ModelSpec, shapes: list[TensorShape], widths: Widths, base: float) -> Figure:
    """FSDP gathers the layer it computes and the next one ahead of it."""
    inner = sum(tensor.numbers for tensor in shapes if tensor.part not in ("embedding", "positions", "head"))
    source = "FSDP keeps the layer it computes and the next whole (Zhao et al. 2023, 2304.11277, §3)"
    return figure(
        "gathered layers", "bytes", "min(2, layers) * layer_parameters * bytes_each", source, layers=spec.layers,
        layer_parameters=math.ceil(inner / spec.layers), bytes_each=base or widths.copy or widths.weight,
    )  # fmt: skip
