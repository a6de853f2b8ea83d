"""From a number of parameters to a model that can be built, and from a budget to a run that can be started."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ..base import UsageError, atomic_write, read_regular
from ..base.fields import FieldError, Within, check_fields, from_plain
from ..families import spec_from_dict
from ..spec import ModelKind, ModelSpec
from .compute import Recompute, flops
from .hardware import Device
from .parameters import parameters
from .search import largest
from .states import Precision, Shard
from .training import Training, training_memory

FORMAT = "nextword-run/1"
SMALLEST, LARGEST = 2e4, 2e13  # parameters of the models that are designed
_VOCABULARIES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_EMBEDDING_SHARE = 0.2
_LARGEST_FILE = 1 << 24  # bytes of a configuration
_CONTEXTS = ((5e6, 256), (5e7, 512), (5e8, 1024), (3e9, 2048), (3e10, 4096))  # up to so many parameters
_TILED, _SHARDED = 1e8, 1e9  # parameters from which widths are coarser
_MOST_RATE = 3e-3
_FEWEST_STEPS = 1000  # updates matter more than smooth gradients while budgets are small (docs/decisions.md)


Whole = Annotated[int, Within(least=1)]
AtLeastZero = Annotated[float, Within(least=0)]
Beta = Annotated[float, Within(least=0, below=1)]
Context = Annotated[int, Within(1, 1 << 27)]
Schedule = Literal["cosine", "wsd", "constant"]
Optimizer = Literal["adamw", "muon", "lion", "adafactor", "momentum", "sgd"]  # of a plan's, those that can be run


@dataclass(frozen=True)
class RunConfig:
    """What a trainer needs to know. Batches count sequences of `context` tokens over all devices and accumulation.

    Raises UsageError that names the field, its value and what it may be.
    """

    model: ModelSpec
    tokens: Annotated[int, Within(least=0)]
    context: Context
    batch: Whole  # sequences a step
    micro_batch: Whole  # sequences a device at a time
    accumulation: Whole
    steps: Whole
    learning_rate: Annotated[float, Within(above=0)]
    final_learning_rate: AtLeastZero
    warmup_steps: Annotated[int, Within(least=0)]
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: AtLeastZero = 0.1
    clip: AtLeastZero = 1.0  # norm of the gradients; 0: none
    precision: Precision = "amp"
    shard: Shard = "none"
    devices: Whole = 1
    seed: Annotated[int, Within(0, (1 << 63) - 1)] = 0  # of weights, order of the data, dropout
    dropout: Annotated[float, Within(least=0, below=1)] = 0.0
    decay_share: Annotated[float, Within(least=0, most=1)] = 0.65  # of the steps, under the schedule "wsd"
    recompute: Recompute = "none"
    packing: Literal["stream", "best-fit"] = "stream"
    across_documents: bool = True  # a token may look at the document before its own, where both are in one row
    carry_state: bool = False  # recurrent nets: rows go on where the step before ended, its state carried along
    lora: Annotated[int, Within(least=0)] = 0  # rank of the adapters; 0 trains every weight

    def __post_init__(self) -> None:
        check_fields(self)
        check_lora(self.lora, self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        training = {key: value for key, value in asdict(self).items() if key != "model"}
        return {"format": FORMAT, "model": self.model.to_dict(), "training": training}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Read `to_dict`'s output. Raises UsageError for anything else."""
        if data.get("format") != FORMAT:
            raise UsageError(f"a run's configuration has format {FORMAT!r}, this one {data.get('format')!r}")
        model, training = data.get("model"), data.get("training")
        if not isinstance(model, Mapping) or not isinstance(training, Mapping):
            raise UsageError(
                "the run's configuration is not whole: it needs an object 'model' and an object 'training'"
            )
        try:
            return from_plain(cls, {**training, "model": spec_from_dict(model, "its model")})
        except UsageError as error:
            raise UsageError(f"the run's configuration is not sound: {error}") from None

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_write(path) as file:
            json.dump(self.to_dict(), file, indent=2)
            file.write("\n")

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a configuration that `write` wrote."""
        try:
            data = json.loads(read_regular(path, _LARGEST_FILE))
        except UsageError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(data, dict):
            raise UsageError(f"{path}: holds a JSON {type(data).__name__}, not an object")
        try:
            return cls.from_dict(data)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def check_lora(rank: int, model: ModelSpec) -> None:
    """Raise UsageError where `model` cannot have adapters of `rank`; 0 means none."""
    if not rank:
        return
    if model.kind != "transformer":
        raise UsageError(f"LoRA adapts the matrices of a transformer's layers; train this {model.kind} whole")
    if rank > model.width:
        raise FieldError("lora", rank, f"at most the model's width, {model.width:,}")


def shape_for(count: float, vocabulary: int | None = None, context: int | None = None) -> ModelSpec:
    """A model in Llama's layout with about `count` parameters: head of 64, gated MLP of 8/3 the width.

    A width is a multiple of the head's; of 128 from 100 million parameters, so that matrices divide into tiles; of 8
    heads from a billion, so that 8 devices share them, with keys and values of 8 and an MLP of a multiple of 256.
    Width over layers grows slowly with size, from 32 at a million to 120 at 7 billion; loss hardly depends on it
    (Kaplan et al. 2020, figure 5). The embedding takes a fifth of the parameters at most. Whole layers and heads meet
    `count` within 7% from 10 million on, 10% from a million, 18% from 100,000 and 26% below.
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
    shapes = [_with_width(count, width, head, vocabulary, context) for width in sorted(widths)]
    return min(shapes, key=lambda spec: _distance(spec, count, aspect))


def recurrent_for(count: float, kind: ModelKind, vocabulary: int | None = None, context: int = 256) -> ModelSpec:
    """An RNN, GRU or LSTM of two layers with about `count` parameters, the head tied to the embedding."""
    if not SMALLEST <= count <= LARGEST:
        raise UsageError(f"a model of {count:.3g} parameters: shapes are known from {SMALLEST:g} to {LARGEST:g}")
    vocabulary = vocabulary or shape_for(count).vocabulary

    def spec(width: int) -> ModelSpec:
        return ModelSpec(kind=kind, vocabulary=vocabulary, width=width, layers=2, context=context)

    return spec(max(1, largest(lambda width: parameters(spec(width)).total <= count, 1 << 24)))


def _distance(spec: ModelSpec, count: float, aspect: float) -> float:
    size = abs(math.log(parameters(spec).total / count))
    return 2 * size + 0.5 * abs(math.log(spec.width / spec.layers / aspect))


def _with_width(count: float, width: int, head: int, vocabulary: int, context: int) -> ModelSpec:
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
    one, two = parameters(spec).total, parameters(replace(spec, layers=2)).total
    return replace(spec, layers=max(1, 1 + round((count - one) / (two - one))))


def run_for(spec: ModelSpec, budget: float, device: Device, devices: int = 1, tokens: float | None = None) -> RunConfig:
    """The run that spends `budget` FLOPs on a model, by its exact FLOPs a token, unless `tokens` says how many.

    Batch in tokens 0.2920 C^0.3271 and learning rate 0.3118 C^-0.1250 (DeepSeek LLM, 2401.02954, §3.1; fitted
    from 1e17 to 2e19 FLOPs, an extrapolation elsewhere), the rate at most 3e-3 and at least 1000 steps. The
    micro-batch is the largest power of two that leaves a tenth of the device's memory.
    """
    context = spec.context
    seen = tokens or budget / flops(spec, context).per_token
    wanted = min(0.2920 * budget**0.3271, seen / _FEWEST_STEPS)
    precision: Precision = "fp32" if device.peak == device.peak_fp32 else "amp"
    shard: Shard = "fsdp" if devices > 1 else "none"
    plan = Training(
        batch=1, context=context, precision=precision, chunked_loss=True, shard=shard, devices=devices,
        runtime=device.runtime,
    )  # fmt: skip

    def fits(batch: int) -> bool:
        return training_memory(spec, replace(plan, batch=batch)).total <= 0.9 * device.memory

    batch = max(devices, round(wanted / context / devices) * devices)
    room = largest(fits, max(1, batch // devices))
    if not room:
        raise UsageError(
            f"not even one sequence of {context:,} tokens of this model trains on {device.title}. What would make it"
            " fit: nextword plan fit"
        )
    micro = 1 << (room.bit_length() - 1)
    accumulation = max(1, round(batch / (micro * devices)))
    batch = micro * devices * accumulation
    steps = max(1, round(seen / (batch * context)))
    rate = _two_digits(min(_MOST_RATE, 0.3118 * budget**-0.1250))
    return RunConfig(
        model=spec,
        tokens=steps * batch * context,
        context=context,
        batch=batch,
        micro_batch=micro,
        accumulation=accumulation,
        steps=steps,
        learning_rate=rate,
        final_learning_rate=_two_digits(rate / 10),
        warmup_steps=min(2000, max(1, steps // 20)),
        precision=precision,
        shard=shard,
        devices=devices,
    )


def memory_setup(run: RunConfig, device: Device) -> Training:
    """The run as `training_memory` takes it."""
    return Training(
        batch=run.micro_batch, context=run.context, precision=run.precision, chunked_loss=True, shard=run.shard,
        devices=run.devices, runtime=device.runtime,
    )  # fmt: skip


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
