"""A parameter count → a concrete model; a budget → a concrete run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from ..base import UsageError
from ..spec import ModelKind, ModelSpec
from .compute import flops
from .hardware import Device
from .parameters import parameters
from .rates import SCANNED_TO, small_rate
from .run_config import ModelConfig, RunConfig, TrainConfig
from .search import largest
from .training import Training, training_memory

SMALLEST, LARGEST = 2e4, 2e13  # parameters of the models it designs
SMALLEST_WORK = 5e3  # FLOPs a token / 6
_VOCABULARIES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_EMBEDDING_SHARE = 0.2
_CONTEXTS = ((5e6, 256), (5e7, 512), (5e8, 1024), (3e9, 2048), (3e10, 4096))  # (parameters up to, context)
_TILED, _SHARDED = 1e8, 1e9  # from these parameter counts, widths are coarser
_MOST_RATE = 3e-3
_FEWEST_STEPS = 1000  # updates matter more than smooth gradients while budgets are small (docs/decisions.md)


def shape_for(count: float, vocabulary: int | None = None, context: int | None = None) -> ModelSpec:
    """A model in Llama's layout with about `count` parameters: head of 64, gated MLP of 8/3 the width.

    The width is a multiple of the head's; of 128 from 100 million parameters, so that matrices divide into tiles; of
    8 heads from a billion, so that 8 devices can share them, with 8 key-value heads and an MLP multiple of 256.
    Width over layers grows slowly with size, from 32 at a million to 120 at 7 billion; loss hardly depends on it
    (Kaplan et al. 2020, figure 5). The embedding takes at most a fifth of the parameters. With whole layers and
    heads, `count` is met within 7% from 10 million on, 10% from a million, 18% from 100,000 and 26% below.
    """
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(f"a model of {count:.3g} parameters: shapes are known from {SMALLEST:g} to {LARGEST:g}")
    aspect = 32 * (count / 1e6) ** 0.15
    about = (count * aspect / 12) ** (1 / 3)
    if vocabulary is None:
        vocabulary = max([v for v in _VOCABULARIES if v * about <= _EMBEDDING_SHARE * count], default=_VOCABULARIES[0])
    if context is None:
        context = next((tokens for most, tokens in _CONTEXTS if count < most), 8192)
    head = 128 if count > 3e9 else 64 if about >= 192 else 32 if about >= 64 else 16
    step = 8 * head if count >= _SHARDED else max(128, head) if count >= _TILED else head
    widths = {max(1, round(about * stretch / step)) * step for stretch in (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4)}
    shapes = [_with_width(count, width, head, vocabulary, context, _total) for width in sorted(widths)]
    return min(shapes, key=lambda spec: _distance(spec, _total(spec) / count, aspect))


def shape_for_flops(per_token: float, vocabulary: int, context: int) -> ModelSpec:
    """As `shape_for`, a model of about `per_token` training FLOPs a token: one of a series for a scaling law.

    Small models have narrower heads, so that widths grow smoothly. Raises UsageError for sizes beyond those known.
    """

    def size(spec: ModelSpec) -> float:
        return flops(spec, context).per_token / 6

    count = per_token / 6
    if not SMALLEST_WORK <= count <= LARGEST:
        raise UsageError(f"a model of {per_token:.3g} FLOPs a token: shapes are known from {6 * SMALLEST_WORK:g} to"
                         f" {6 * LARGEST:g}")  # fmt: skip
    aspect = 32 * (count / 1e6) ** 0.15
    about = (count * aspect / 12) ** (1 / 3)
    head = 128 if count > 3e9 else 64 if about >= 256 else 32 if about >= 128 else 16
    step = 8 * head if count >= _SHARDED else max(128, head) if count >= _TILED else head
    widths = range(step, max(step, round(1.5 * about)) + 1, step)
    shapes = [_with_width(count, width, head, vocabulary, context, size) for width in widths]
    return min(shapes, key=lambda spec: _distance(spec, size(spec) / count, aspect))


def recurrent_for(count: float, kind: ModelKind, vocabulary: int | None = None, context: int = 256) -> ModelSpec:
    """An RNN, GRU or LSTM of two layers with about `count` parameters, the head tied to the embedding."""
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(f"a model of {count:.3g} parameters: shapes are known from {SMALLEST:g} to {LARGEST:g}")
    vocabulary = vocabulary or shape_for(count).vocabulary

    def spec(width: int) -> ModelSpec:
        return ModelSpec(kind=kind, vocabulary=vocabulary, width=width, layers=2, context=context)

    return spec(max(1, largest(lambda width: parameters(spec(width)).total <= count, 1 << 24)))


def _total(spec: ModelSpec) -> float:
    return parameters(spec).total


def _distance(spec: ModelSpec, ratio: float, aspect: float) -> float:
    return 2 * abs(math.log(ratio)) + 0.5 * abs(math.log(spec.width / spec.layers / aspect))


def _with_width(
    count: float, width: int, head: int, vocabulary: int, context: int, size: Callable[[ModelSpec], float]
) -> ModelSpec:
    heads, inner = width // head, 256 if count >= _SHARDED else 16
    spec = ModelSpec(
        kind="transformer",
        vocabulary=vocabulary,
        width=width,
        layers=1,
        context=context,
        tied=count < _SHARDED,
        heads=heads,
        kv_heads=8 if count >= _SHARDED else heads,
        head_width=head,
        mlp_width=max(1, round(width * 8 / 3 / inner)) * inner,
    )
    one, two = size(spec), size(replace(spec, layers=2))
    return replace(spec, layers=max(1, 1 + round((count - one) / (two - one))))


def run_for(spec: ModelSpec, budget: float, device: Device, devices: int = 1, tokens: float | None = None) -> RunConfig:
    """A run of a model with `budget` FLOPs, by its exact FLOPs per token, or with `tokens` if given.

    Batch in tokens 0.2920 C^0.3271, but at least 1000 steps, and learning rate 0.3118 C^-0.1250, at most 3e-3
    (DeepSeek LLM, 2401.02954, §3.1; fitted from 1e17 to 2e19 FLOPs, an extrapolation elsewhere); small and recurrent
    models have rates of their own. The micro-batch is the largest power of two that leaves a tenth of the device's
    memory.
    """
    context = spec.context
    seen = tokens or budget / flops(spec, context).per_token
    wanted = min(0.2920 * budget**0.3271, seen / _FEWEST_STEPS)
    dtype: Literal["fp32", "amp"] = "fp32" if device.peak == device.peak_fp32 else "amp"
    shard: Literal["none", "fsdp"] = "fsdp" if devices > 1 else "none"
    plan = Training(
        batch=1, context=context, precision=dtype, chunked_loss=True, shard=shard, devices=devices,
        runtime=device.runtime,
    )  # fmt: skip

    def fits(batch: int) -> bool:
        return training_memory(spec, replace(plan, batch=batch)).total <= 0.9 * device.memory

    batch = max(devices, round(wanted / context / devices) * devices)
    capacity = largest(fits, max(1, batch // devices))
    if not capacity:
        raise UsageError(
            f"not even one sequence of {context:,} tokens of this model trains on {device.title}. What would make it"
            " fit: nextword plan fit"
        )
    micro_batch = 1 << (capacity.bit_length() - 1)
    batch = micro_batch * devices * max(1, round(batch / (micro_batch * devices)))
    steps = max(1, round(seen / (batch * context)))
    rate = _two_digits(_rate(spec, budget, batch * context))
    train = TrainConfig(
        steps=steps, context=context, batch_size=batch, micro_batch=micro_batch, learning_rate=rate,
        final_learning_rate=_two_digits(rate / 10), warmup_steps=warmup_for(steps), schedule="cosine", dtype=dtype,
        shard=shard, devices=devices,
    )  # fmt: skip
    return RunConfig(model=ModelConfig(arch=spec.kind, spec=spec), train=train)


def _rate(spec: ModelSpec, budget: float, batch_tokens: int) -> float:
    size = flops(spec, spec.context).per_token / 6
    if spec.kind != "transformer" or size <= SCANNED_TO:
        return small_rate(spec.kind, size, batch_tokens)
    return float(min(_MOST_RATE, 0.3118 * budget**-0.1250))


def warmup_for(steps: int) -> int:
    """Default warm-up steps for a run of `steps`."""
    return min(2000, max(1, steps // 20))


def memory_setup(config: RunConfig, device: Device) -> Training:
    """The run's settings for `training_memory`."""
    train = config.train
    return Training(
        batch=train.micro_batch, context=train.context, precision="fp32" if train.dtype == "auto" else train.dtype,
        chunked_loss=True, shard=train.shard, devices=train.devices, runtime=device.runtime,
    )  # fmt: skip


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
