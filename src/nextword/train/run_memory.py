"""A run's peak memory by formula, before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from .. import native
from ..plan import RunConfig, Training
from ..plan.figure import figure
from ..plan.training import CPU_FRAGMENTATION, Memory, training_memory

# bytes that torch and oneDNN add for the products of a run's own shapes: code, and buffers that stay; measured
_OWN_SHAPES = {"fp32": 15e6, "amp": 35e6}


@dataclass(frozen=True)
class Host:
    """Where a process of the run computes. `resident`: its bytes before there is a model; 0 on a GPU."""

    resident: float = 0.0
    gpu: bool = False
    per_machine: int = 1  # processes


def run_memory(config: RunConfig, host: Host) -> Memory:
    """Peak memory of one process of a resolved run: resident on a CPU, of torch's allocator on a GPU."""
    memory = training_memory(config.spec, _setup(config, host))
    if config.train.devices == 1 or host.gpu or config.run.checkpoint_every == 0:
        return memory
    kept = {name.replace(" ", "_"): memory.part(name) for name in ("frozen weights", "weights", "optimizer states")}
    source = "a checkpoint is written from a copy, while training goes on"
    return Memory((*memory.parts, figure("copy for checkpoints", "bytes", " + ".join(kept), source, **kept)))


def _gaps(config: RunConfig) -> float:
    """Gaps in glibc's heap, as a share of what each step allocates; measured, benchmarks/memory.py."""
    if config.spec.kind == "lstm":
        return 0.1  # oneDNN takes few large blocks
    between = config.train.accumulation > 1 or config.train.recompute != "none"  # gradients lie between activations
    return 0.6 if between else CPU_FRAGMENTATION


def _setup(config: RunConfig, host: Host) -> Training:
    train = config.train
    devices = train.devices // train.tensor_parallel  # as if each process had whole layers: at most that
    return Training(
        batch=train.micro_batch, context=train.context, optimizer=train.optimizer,
        precision="amp" if train.dtype == "amp" else "fp32", recompute=train.recompute, chunked_loss=True,
        shard=train.shard if devices > 1 else "none", devices=devices,
        per_machine=max(1, host.per_machine // train.tensor_parallel),
        lora=config.model.lora, base="fp32",
        runtime=0 if host.gpu else host.resident + _OWN_SHAPES[train.dtype],
        fragmentation=0.0 if host.gpu else _gaps(config), micro_batches=train.accumulation, cpu=not host.gpu,
        fused=native.available() and not host.gpu,
    )  # fmt: skip
