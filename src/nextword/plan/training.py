"""A training run: memory line by line, FLOPs, time, price, and rules of thumb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from ..base import UsageError
from ..spec import ModelSpec
from .activations import Kernel, activations, gated_by_silu
from .compute import Flops, Recompute, flops
from .figure import Figure, Parts, figure
from .hardware import RUNTIME, Device
from .parameters import parameters
from .search import largest
from .shapes import GATES
from .states import PRECISIONS, Optimizer, Precision, Shard, states

CHUNK = 1024  # tokens whose logits a chunked loss computes at a time
BLOCK = 1024  # rows of float32 per MLP pass of the kernels: few enough for the cache, enough for efficient products
FRAGMENTATION = 0.05  # share; assumed for gaps in the caching allocator
CPU_FRAGMENTATION = 0.25  # share; measured with glibc's allocator over all kinds, benchmarks/memory.py
_BACKWARD_WIDTHS = {"lstm": 8, "gru": 11, "rnn": 4}  # numbers of a layer's backward pass on a CPU, a token and unit
DEVICES_PER_MACHINE = 8
MFU = 0.40
MFU_SOURCE = (
    "assumed: Llama 3 405B reached 38-43% (2407.21783, table 4), PaLM 46% (2204.02311), nanoGPT's GPT-2 about 30%"
)


@dataclass(frozen=True)
class Training:
    """Training settings. `batch` is the number of sequences of `context` tokens per device at a time."""

    batch: int = 1
    context: int = 1024
    optimizer: Optimizer = "adamw"
    precision: Precision = "mixed"
    recompute: Recompute = "none"
    kernel: Kernel = "flash"
    chunked_loss: bool = False
    shard: Shard = "none"
    devices: int = 1
    per_machine: int = DEVICES_PER_MACHINE  # with shard="hybrid", which keeps a copy on each machine
    lora: int = 0
    lora_targets: tuple[str, ...] = ()
    base: str = "bf16"
    micro_batches: int = 2  # of a step; with a single one, gradients take the room that activations leave
    cpu: bool = False
    fused: bool = False  # with nextword's compiled kernels, on a CPU, which keep fewer activations
    runtime: float = RUNTIME
    fragmentation: float = FRAGMENTATION

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 1 or self.devices < 1:
            raise UsageError(
                f"batch, context and devices are whole numbers from 1, not {self.batch}, {self.context}, {self.devices}"
            )
        if self.shard != "none" and self.devices == 1:
            raise UsageError(f"--shard {self.shard} shards over devices; give their number, as in --devices 8")

    @property
    def sharing(self) -> int:
        """The number of devices that share a copy of the states."""
        return min(self.devices, self.per_machine) if self.shard == "hybrid" else self.devices


@dataclass(frozen=True)
class Memory(Parts):
    """Bytes on one device. `parts` sum to `total`."""

    units: ClassVar = {"total": "bytes"}

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the parts as a bar."""
        from .plots import memory_bundle

        return memory_bundle(self, (), "memory")


@dataclass(frozen=True)
class TrainingPlan:
    """A training run on one kind of device. `activations` sum to memory's line of that name; `rules`: of thumb."""

    units: ClassVar = {"largest_batch": "sequences", "longest_context": "tokens", "tokens": "tokens"}
    setup: Training
    device: Device
    memory: Memory
    activations: tuple[Figure, ...]
    largest_batch: int  # per device at the run's context; 0: none fits
    longest_context: int  # at its batch
    tokens: float
    cost: Cost
    rules: tuple[Figure, ...]

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.device.memory

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the memory against the device's line."""
        from .plots import training_bundle

        return training_bundle(self)


def plan_training(
    spec: ModelSpec, run: Training, device: Device, tokens: float, mfu: float, price: float | None = None
) -> TrainingPlan:
    """Plan training a model on `tokens` tokens; `mfu` and `price` as in `cost`."""
    run = replace(run, runtime=device.runtime, cpu=device.is_cpu)
    batch, context = largest_training(spec, run, device)
    return TrainingPlan(
        run, device, training_memory(spec, run), saved_parts(spec, run), batch, context, tokens,
        cost(spec, run, tokens, device.speed(run.precision), mfu, price), rules_of_thumb(spec, run.devices),
    )  # fmt: skip


def largest_training(spec: ModelSpec, run: Training, device: Device) -> tuple[int, int]:
    """The largest batch at the run's context and the longest context at its batch that fit; 0: none fits."""

    def fits(changed: Training) -> bool:
        return training_memory(spec, changed).total <= device.memory

    return (
        largest(lambda batch: fits(replace(run, batch=batch)), 1 << 20),
        largest(lambda context: fits(replace(run, context=context)), 1 << 24),
    )


def training_memory(spec: ModelSpec, run: Training) -> Memory:
    """A device's peak memory; of several micro-batches, gradients exist when the loss of a later one is computed."""
    kept = states(
        spec, optimizer=run.optimizer, precision=run.precision, shard=run.shard, devices=run.sharing, lora=run.lora,
        lora_targets=run.lora_targets, base=run.base,
    )  # fmt: skip
    width = PRECISIONS[run.precision].compute
    saved = saved_parts(spec, run)
    formula = " + ".join(f"part_{number}" for number in range(len(saved)))
    inputs = {f"part_{number}": part.value for number, part in enumerate(saved)}
    activations_held = figure(
        "activations", "bytes", formula, "the sum of what the layers keep, listed below", **inputs
    )
    logits = _logits(spec, run, width)
    moving = [activations_held, logits, _working_space(spec, run, width, logits.value)]
    if run.micro_batches == 1:
        own = _gradients(spec, run, kept.part("gradients"), sum(part.value for part in moving))
        kept = replace(kept, parts=tuple(own if part.name == "gradients" else part for part in kept.parts))
    if run.fused and not run.lora and run.recompute != "selective" and gated_by_silu(spec):
        kept = replace(kept, parts=tuple(map(partial(_fused_copies, spec), kept.parts)))
    gathered = kept.part("gathered layers")
    gradients = kept.part("gradients") if run.cpu else 0  # an assumed share is of the rest
    gaps = figure(
        "fragmentation", "bytes", "share * moving",
        "share of what is allocated and freed at every step: assumed on a GPU, measured on a CPU",
        share=run.fragmentation, moving=sum(part.value for part in moving) + gathered + gradients,
    )  # fmt: skip
    runtime = figure("runtime", "bytes", "runtime", "assumed: device context and libraries", runtime=run.runtime)
    return Memory(tuple(part for part in (*kept.parts, *moving, gaps, runtime) if part.value))


def saved_parts(spec: ModelSpec, run: Training) -> tuple[Figure, ...]:
    """The lines summed in "activations" of `training_memory`."""
    width = PRECISIONS[run.precision].compute
    return activations(
        spec, run.batch, run.context, width_bytes=width, recompute=run.recompute, kernel=run.kernel,
        cpu=run.cpu, fused=run.fused, adapted=run.lora > 0,
    ).parts  # fmt: skip


def _gradients(spec: ModelSpec, run: Training, whole: float, moving: float) -> Figure:
    """Gradients at the peak of a step of one micro-batch: it is where the loss is computed, or where all exist."""
    head = 0 if run.lora else min(whole, PRECISIONS[run.precision].gradient * spec.vocabulary * spec.width)
    source = "with one micro-batch a step: the head's, formed with the loss, or what all take beyond the activations"
    twice = head if spec.tied else 0  # the embedding's, before it is added to the head's
    return figure("gradients", "bytes", "max(head, all_gradients + tied - moving)", source, head=head,
                  all_gradients=whole, tied=twice, moving=moving)  # fmt: skip


def _fused_copies(spec: ModelSpec, part: Figure) -> Figure:
    if part.name != "16-bit copies of weights":
        return part
    source = "nextword's kernels copy a matrix for its product only; attention's output is torch's, and keeps copies"
    return figure(part.name, "bytes", "2 * width * (layers * q + vocabulary)", source, width=spec.width,
                  layers=spec.layers, q=spec.heads * spec.head_width, vocabulary=spec.vocabulary)  # fmt: skip


def _logits(spec: ModelSpec, run: Training, width: float) -> Figure:
    tokens = run.batch * run.context
    own, source = 12.0, "float32 logits, their log-softmax and its gradient: 3 x 4 bytes"
    if run.fused and run.chunked_loss:
        own, source = width, "nextword's kernel puts the gradient in the logits' place"
    return figure(
        "logits", "bytes", f"min(tokens, chunk) * vocabulary * {own:g}", source, tokens=tokens,
        chunk=CHUNK if run.chunked_loss else tokens, vocabulary=spec.vocabulary,
    )  # fmt: skip


def _working_space(spec: ModelSpec, run: Training, width: float, logits: float) -> Figure:
    """Gradients of the widest activations while a layer's backward pass runs; not at the same time as the logits."""
    if run.cpu and run.chunked_loss:
        return _working_space_on_cpu(spec, run, width, logits)
    inner = GATES[spec.kind] * spec.width if spec.kind != "transformer" else _widest(spec)
    return figure(
        "working space", "bytes", "max(0, tokens * a * (inner + 2 * width) - logits)",
        "gradients in flight in one layer; the logits' room is used again", tokens=run.batch * run.context, a=width,
        inner=inner, width=spec.width, logits=logits,
    )  # fmt: skip


def _working_space_on_cpu(spec: ModelSpec, run: Training, width: float, logits: float) -> Figure:
    """As `_working_space`; nextword's MLP forms its gradients for some rows at a time."""
    tokens, copies = run.batch * run.context, 0.0
    rows = tokens
    if spec.kind != "transformer":
        inner = _BACKWARD_WIDTHS[spec.kind] * spec.width
        copies = 2 * 8 * spec.width**2 * width if spec.kind == "lstm" else 0.0  # of a layer's, in oneDNN's layouts
    else:
        inner = _widest(spec)
        if run.fused and not run.lora and gated_by_silu(spec):
            rows = min(rows, round(BLOCK * 4 / width))
    return figure(
        "working space", "bytes", "tokens * a * 2 * width + max(0, rows * a * inner - logits) + copies",
        "gradients by input and output of the head or a layer, and in flight in one layer or, instead, the logits",
        tokens=tokens, rows=rows, a=width, inner=inner, width=spec.width, logits=logits, copies=copies,
    )  # fmt: skip


def _widest(spec: ModelSpec) -> int:
    up = 3 if spec.mlp == "gated" else 2  # gradients of up's output and of the inner product
    experts = spec.experts.active * spec.experts.width if spec.experts else 0
    return up * max(spec.mlp_width, experts)


@dataclass(frozen=True)
class Cost:
    """The cost of a run. Seconds are wall-clock time on all devices."""

    flops: Flops
    seconds: Figure
    device_hours: Figure
    money: Figure | None


def cost(
    spec: ModelSpec, run: Training, tokens: float, peak: float, mfu: float = MFU, price: float | None = None
) -> Cost:
    """FLOPs, time and price of training on `tokens` tokens with devices of `peak` FLOP/s each.

    `mfu` is the share of the peak reached, with recomputation counted; `price` is per device hour.
    """
    if not 0 < mfu <= 1:
        raise UsageError(f"--mfu is a share between 0 and 1, not {mfu}")
    counted = flops(spec, run.context, tokens, recompute=run.recompute, lora=run.lora,
                    lora_targets=run.lora_targets)  # fmt: skip
    seconds = duration(counted.total, run.devices, peak, mfu)
    hours = figure("device hours", "h", "devices * seconds / 3600", "", devices=run.devices, seconds=seconds.value)
    money = None
    if price is not None:
        money = figure("cost", "$", "device_hours * price", "price as given", device_hours=hours.value, price=price)
    return Cost(counted, seconds, hours, money)


def duration(work: float, devices: int, peak: float, mfu: float = MFU) -> Figure:
    """Seconds for `work` FLOPs on `devices` of `peak` FLOP/s, at the share `mfu`."""
    formula = "flops / (devices * peak * mfu)"
    return figure("time", "s", formula, f"MFU {MFU_SOURCE}", flops=work, devices=devices, peak=peak, mfu=mfu)


def rules_of_thumb(spec: ModelSpec, devices: int = 1) -> tuple[Figure, ...]:
    """Bytes by common rules of thumb; with several `devices`, two versions of ZeRO stage 2."""
    count = {"parameters": parameters(spec).total}
    table = "float32 weights 4, gradients 4, Adam 8, and 8 for activations, which really grow with batch x context"
    states_only = "ZeRO, 1910.02054, §3.1: weights, gradients and Adam's states, no activations"
    rules = [
        figure("to store, float32", "bytes", "parameters * 4", "4 bytes a float32 number", **count),
        figure("24 bytes a parameter", "bytes", "(4 + 4 + 8 + 8) * parameters", table, **count),
        figure("16 bytes a parameter", "bytes", "(4 + 4 + 8) * parameters", states_only, **count),
    ]
    if devices > 1:
        paper = (
            "Rajbhandari et al. 2020, 1910.02054, §5: 16-bit weights whole; gradients, master weights and Adam shared"
        )
        code = "DeepSpeed's estimate_zero2_model_states_mem_needs, a device, without offloading"
        inputs = {**count, "devices": devices}
        rules += [
            figure("ZeRO stage 2, paper", "bytes", "2 * parameters + 14 * parameters / devices", paper, **inputs),
            figure("ZeRO stage 2, DeepSpeed", "bytes", "4 * parameters + 16 * parameters / devices", code, **inputs),
        ]
    return tuple(rules)
