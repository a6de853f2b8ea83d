"""One process or many, on PyTorch's own stack: who I am, and how a model and its gradients are shared.

Start many with torchrun: `torchrun --nproc-per-node 2 -m nextword train ...`. Without it everything here is a no-op.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base import UsageError

_PATIENCE = timedelta(minutes=10)  # for a process that does not answer


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def this_process() -> Process:
    """What torchrun says of this process; a lone one otherwise."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Process()
    return Process(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def choose_device(name: str, process: Process) -> torch.device:
    """ "auto" is the process's GPU if there is one, else the CPU. Raises UsageError for one that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{process.local}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}). Use: --device cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(process: Process, device: torch.device) -> Iterator[None]:
    """The processes joined in one group while the block runs: NCCL between GPUs, gloo between CPUs."""
    if process.world == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(model: nn.Module, shard: str, process: Process, device: torch.device) -> nn.Module:
    """`model` (a `Training`) made to sum its gradients over all processes.

    "ddp" keeps whole copies; "fsdp" gives each process a share of weights, gradients and optimizer states (FSDP2).
    Gradients are sums, not means: the loss is divided by the tokens of all processes before.
    """
    if process.world == 1:
        return model
    if shard in ("none", "ddp"):
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids)
        wrapped.register_comm_hook(None, _sum_gradients)
        return wrapped
    if shard == "fsdp":
        return _fully_shard(model, process, device)
    raise UsageError(f"--shard {shard} can be planned but not run. Runs: ddp, fsdp")


def _sum_gradients(state: object, bucket: Any) -> torch.futures.Future[Tensor]:
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


# DDP compares a hook's annotations with its own classes, and those of this module are strings.
_BUCKET = dist.GradBucket  # type: ignore[attr-defined]
_sum_gradients.__annotations__ = {"state": object, "bucket": _BUCKET, "return": torch.futures.Future[Tensor]}


def _fully_shard(model: nn.Module, process: Process, device: torch.device) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (process.world,))
    blocks: Any = getattr(model.model, "blocks", ())
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            part.set_gradient_divide_factor(1.0)
    return model


def total(values: list[float], process: Process, device: torch.device) -> list[float]:
    """Each number summed over all processes, in float64."""
    if process.world == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    numbers: list[float] = tensor.tolist()
    return numbers


def from_first(value: Any, process: Process) -> Any:
    """What the first process holds, on every process."""
    if process.world == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def wait(process: Process) -> None:
    """Until every process is here."""
    if process.world > 1:
        dist.barrier()


def leave(code: int) -> NoReturn:
    """End one process of many without the interpreter's own shutdown.

    A communication thread that asks for the interpreter while it shuts down aborts the process ("terminate called
    without an active exception", seen once in some hundred finished runs), and torchrun then kills the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
