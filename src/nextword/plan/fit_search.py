"""The cheapest changes that make a training run fit on a device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..spec import ModelSpec
from .compute import flops
from .hardware import Device
from .training import Memory, Training, cost, largest_training, training_memory

_MOST_CHANGES = 5
_ENOUGH = 6  # remedies to list
_RANK = 16  # of LoRA
# Time factors that FLOP counts do not give; all are assumptions, and labelled as such.
_CHUNKED = 1.02
_EIGHT_BIT = 1.01
_FLASH = 0.95
_SELECTIVE = 1.04  # Korthikanti et al. 2022, table 5: 1.3 to 7% on their largest models
_SHARDED = {"zero1": 1.0, "zero2": 1.02, "fsdp": 1.1}
_HALVED = 1.03  # of the micro-batch
_FOUR_BIT = 1.3


@dataclass(frozen=True)
class Change:
    """One change. `time` multiplies the run's time; `same_result`: whether the trained model is the same."""

    axis: str
    name: str
    fields: dict[str, object]
    time: float
    why: str
    same_result: bool = True


@dataclass(frozen=True)
class Remedy:
    """Changes that together make the training fit."""

    changes: tuple[Change, ...]
    setup: Training
    memory: Memory
    time: float  # relative to the requested run

    @property
    def name(self) -> str:
        return " + ".join(change.name for change in self.changes)

    @property
    def same_result(self) -> bool:
        return all(change.same_result for change in self.changes)


@dataclass(frozen=True)
class Diagnosis:
    """Whether a run fits on a device, and remedies: those with the same result first, then the fastest."""

    units: ClassVar = {"largest_batch": "sequences", "longest_context": "tokens"}
    device: Device
    setup: Training
    memory: Memory
    remedies: tuple[Remedy, ...]
    closest: Remedy | None  # the changes with the least memory, if nothing fits
    largest_batch: int
    longest_context: int
    devices_needed: int | None  # with FSDP and full recomputation; None if even 4,096 are too few

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.device.memory

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """In a notebook: the run and its remedies against the device's line."""
        from .plots import diagnosis_bundle

        return diagnosis_bundle(self)


def diagnose(spec: ModelSpec, setup: Training, on: Device, devices: int | None = None) -> Diagnosis:
    """Whether `setup` fits on `on`, and the cheapest changes if not. `devices`: available for sharding."""
    setup = replace(setup, runtime=on.runtime, cpu=on.is_cpu)
    memory = training_memory(spec, setup)
    remedies: list[Remedy] = []
    least: Remedy | None = None
    if memory.total > on.memory:
        remedies, least = _search(spec, setup, on, devices or setup.devices)
    return Diagnosis(on, setup, memory, tuple(remedies), least, *largest_training(spec, setup, on),
                     devices_needed(spec, setup, on))  # fmt: skip


def devices_needed(spec: ModelSpec, setup: Training, on: Device) -> int | None:
    """The smallest power of two of devices that hold the run with FSDP, full recomputation and one sequence each."""
    lean = replace(setup, batch=1, chunked_loss=True, recompute="full", kernel="flash", shard="none", devices=1)
    for power in range(13):
        run = replace(lean, shard="fsdp", devices=1 << power) if power else lean
        if training_memory(spec, run).total <= on.memory:
            return 1 << power
    return None


def _search(spec: ModelSpec, setup: Training, on: Device, devices: int) -> tuple[list[Remedy], Remedy | None]:
    """Sets of changes by size, without supersets of a set that already fits."""
    options = list(_options(spec, setup, on, devices))
    remedies: list[Remedy] = []
    least: Remedy | None = None
    for count in range(1, _MOST_CHANGES + 1):
        for group in itertools.combinations(options, count):
            if not _compatible(group) or any(set(_names(remedy.changes)) <= set(_names(group)) for remedy in remedies):
                continue
            remedy = _remedy(spec, setup, on, group)
            if least is None or remedy.memory.total < least.memory.total:
                least = remedy
            if remedy.memory.total <= on.memory:
                remedies.append(remedy)
        if len(remedies) >= _ENOUGH:
            break
    remedies.sort(key=lambda fix: (not fix.same_result, round(fix.time, 3), len(fix.changes), fix.memory.total))
    return remedies, None if remedies else least


def _names(changes: Iterable[Change]) -> list[str]:
    return [change.name for change in changes]


def _compatible(group: tuple[Change, ...]) -> bool:
    axes = [change.axis for change in group]
    return len(set(axes)) == len(axes)


def _remedy(spec: ModelSpec, setup: Training, on: Device, group: tuple[Change, ...]) -> Remedy:
    fields: dict[str, object] = {}
    time = 1.0
    for change in group:
        fields |= change.fields
        time *= change.time
    run = replace(setup, **fields)  # type: ignore[arg-type]
    time *= _work(spec, run, on) / _work(spec, setup, on)
    return Remedy(group, run, training_memory(spec, run), time)


def _work(spec: ModelSpec, run: Training, on: Device) -> float:
    """Seconds that the FLOPs of one token take at the device's peak for the run's precision."""
    return cost(spec, run, run.context, on.speed(run.precision), 1.0).flops.total / on.speed(run.precision)


def _options(spec: ModelSpec, setup: Training, on: Device, devices: int) -> Iterator[Change]:
    if not setup.chunked_loss:
        yield Change("loss", "chunked loss", {"chunked_loss": True}, _CHUNKED, "logits of 1,024 tokens at a time")
    if setup.kernel == "plain" and spec.kind == "transformer":
        yield Change("kernel", "flash attention", {"kernel": "flash"}, _FLASH, "scores are never stored")
    if spec.kind == "transformer":
        if setup.recompute == "none":
            why = "norms, rotary positions and the MLP's product are recomputed"
            yield Change("recompute", "selective recomputation", {"recompute": "selective"}, _SELECTIVE, why)
        if setup.recompute != "full":
            share = flops(spec, setup.context, recompute="full").total / flops(spec, setup.context).total - 1
            why = f"each layer's forward pass once more: {share:.0%} more FLOPs"
            yield Change("recompute", "full recomputation", {"recompute": "full"}, 1.0, why)
    if setup.optimizer in ("adamw", "muon", "lion", "momentum") and setup.lora == 0:
        why = "Adam's states in 1 byte each; losses stay close (2110.02861)"
        yield Change("optimizer", "8-bit Adam", {"optimizer": "adam8bit"}, _EIGHT_BIT, why)
    yield from _precisions(setup, on)
    yield from _shardings(setup, devices)
    yield from _adapters(setup)
    yield from _batches(setup)


def _precisions(setup: Training, on: Device) -> Iterator[Change]:
    if setup.precision in ("fp32", "amp"):
        gain = (
            f"{on.peak / on.peak_fp32:.3g}x the arithmetic of float32" if setup.precision == "fp32" else "2 bytes less"
        )
        why = f"bf16 weights and activations, float32 master weights; {gain}"
        yield Change("precision", "mixed precision", {"precision": "mixed"}, 1.0, why)
    if setup.precision != "bf16":
        why = "weights and states in bf16: small updates are lost in rounding"
        yield Change("precision", "pure bf16", {"precision": "bf16"}, 1.0, why, same_result=False)


def _shardings(setup: Training, devices: int) -> Iterator[Change]:
    if devices < 2:
        return
    order = ["none", "ddp", "zero1", "zero2", "fsdp"]
    present = "zero2" if setup.shard == "hybrid" else setup.shard  # of its states, less than fsdp shards
    for shard in order[max(2, order.index(present) + 1) :]:
        fields: dict[str, object] = {"shard": shard, "devices": devices}
        why = f"states sharded over {devices} devices; traffic assumed" + ("" if shard == "fsdp" else " as in DDP")
        yield Change("shard", f"{shard} over {devices}", fields, _SHARDED[shard], why)


def _adapters(setup: Training) -> Iterator[Change]:
    if setup.lora:
        return
    why = f"rank-{_RANK} adapters are trained, the weights stay"
    fields: dict[str, object] = {"lora": _RANK, "base": "bf16"}
    yield Change("lora", "LoRA", fields, 1.0, why, same_result=False)
    why = "the same on weights in 4 bits, expanded for every product"
    yield Change("lora", "LoRA on 4 bits", {"lora": _RANK, "base": "nf4"}, _FOUR_BIT, why, same_result=False)


def _batches(setup: Training) -> Iterator[Change]:
    batch, halvings = setup.batch, 0
    while batch > 1:
        batch, halvings = batch // 2, halvings + 1
        why = f"{setup.batch} sequences in {-(-setup.batch // batch)} parts, gradients accumulated"
        yield Change("batch", f"micro-batch {batch}", {"batch": batch}, _HALVED**halvings, why)
