"""One or many processes with torch.distributed: ranks, DDP, FSDP, and error reporting.

Start many with `nextword train ... --processes 2` or `torchrun --nproc-per-node 2 -m nextword train ...`. Without them
everything here is a no-op.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from ..base import NextwordError, RunError, UsageError
from ..models.device import usable_device

_PATIENCE = timedelta(minutes=10)  # until a process that does not answer is considered lost
WHILE_PREPARING = timedelta(days=7)  # for the first process, which tokenizes the text
_ended: list[Any] = []  # groups, kept: DDP's destructor would end one's threads while they wait for the GIL it holds
_listening: list[socket.socket] = []  # while this process lives, for `_end_elsewhere`
_groups = count()  # groups joined so far; the same number in every process
_RUN = "nextword/run"  # in the launcher's store: the folder of the run
_SECONDS_TO_DIE = 2.0  # between the end of a process's connections and its exit


@dataclass(frozen=True)
class Process:
    """This process's rank among those of the run. `tensor` neighbours share each layer, and compute the same rows."""

    rank: int = 0
    world: int = 1
    local: int = 0
    tensor: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def readers(self) -> int:
        """The number of parts that a batch is divided into."""
        return self.world // self.tensor

    @property
    def reader(self) -> int:
        """Which of these parts is this process's."""
        return self.rank // self.tensor


def this_process() -> Process:
    """The process's rank from torchrun's environment, or a single process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Process()
    return Process(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def processes_here() -> int:
    """The number of processes of the run on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_device(name: str, process: Process) -> torch.device:
    """ "auto" is the process's GPU if there is one, else the CPU. Raises UsageError for one that cannot be used."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        name = f"cuda:{process.local}"
    device = usable_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(
    process: Process, device: torch.device, then: str = "", patience: timedelta = _PATIENCE
) -> Iterator[None]:  # fmt: skip
    """The processes joined in one group while the block runs: NCCL between GPUs, gloo between CPUs.

    A process waits for another for up to `patience`.
    Raises RunError, ending in `then`, if another process is lost.
    """
    if process.world == 1 or dist.is_initialized():
        yield
        return
    backend, store = "nccl" if device.type == "cuda" else "gloo", _store()
    address, port = _listen()
    store.set(_key(f"process-{process.rank}"), f"{socket.gethostname()} {os.getpid()} {address} {port}")
    name = _key(f"group-{next(_groups)}")  # a new name: the addresses of an earlier group are stale
    group = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=group, rank=process.rank, world_size=process.world, timeout=patience)
    try:
        with one_voice(then):  # before the others lose their connections to this process
            yield
    finally:
        _ended.append(dist.group.WORLD)
        dist.destroy_process_group()


@contextmanager
def one_voice(then: str = "") -> Iterator[None]:
    """If several processes fail, the first on each machine to notice reports the reason; the others end silently.

    A connection error becomes a RunError that names the lost process, and ends in `then`.
    """
    try:
        yield
    except Exception as error:
        process = this_process()
        if process.world == 1:
            raise
        if not _speaks_first():
            raise SystemExit(1) from None
        if isinstance(error, RuntimeError) and not isinstance(error, NextwordError):
            raise _explained(error, process, then) from error
        _say(f"rank {process.rank} on {socket.gethostname()}: {error}")
        raise


def _explained(error: RuntimeError, process: Process, then: str) -> RuntimeError:
    """`error` itself, unless another process has ended, or it is a connection error."""
    about_connections = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
    then = "; its launcher starts again from the last checkpoint" if _starts_again() else then and f"; {then}"
    end = time.monotonic() + (_SECONDS_TO_DIE if about_connections else 0.0)
    while not (reason := _reason(process, about_connections, then)) and time.monotonic() < end:
        time.sleep(0.01)
    if reason:
        return RunError(reason)
    if about_connections:
        return RunError(f"the processes lost touch with each other ({_what(error)}){then}")
    return error


def _what(error: Exception) -> str:
    """What a connection error says first, without torch's line of source and advice."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).partition(". ")[0]


def _reason(process: Process, elsewhere: bool, then: str) -> str:
    """Why the job ends: what a process of another machine said, or which ended; "" if unknown."""
    with suppress(RuntimeError):  # the store is lost too
        if elsewhere and (said := _said()):
            return said
        if lost := _lost(process, elsewhere):
            return ", ".join(f"rank {rank} on {how}" for rank, how in lost.items()) + then
    return ""


def _lost(process: Process, elsewhere: bool) -> dict[int, str]:
    """The other processes that have ended, by rank, where and how; those of other machines only if `elsewhere`."""
    store, lost = _store(), {}
    for rank in range(process.world):
        key = _key(f"process-{rank}")
        if rank == process.rank or not store.check([key]):
            continue
        host, number, address, port = store.get(key).decode().split()
        if host == socket.gethostname():
            cause = _end_of(int(number))
        else:
            cause = _end_elsewhere(address, int(port)) if elsewhere else ""
        if cause:
            lost[rank] = f"{host} ended ({cause})"
    return lost


def _listen() -> tuple[str, int]:
    """Listen, without ever answering, as long as this process lives; the address to reach it at."""
    if not _listening:
        _listening.append(socket.create_server(("", 0)))
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))) as probe:
        return probe.getsockname()[0], _listening[0].getsockname()[1]


def _end_elsewhere(address: str, port: int) -> str:
    """How a process of another machine ended that listened there; "" while it listens."""
    try:
        socket.create_connection((address, port), _SECONDS_TO_DIE).close()
    except ConnectionRefusedError:
        return "killed, or it crashed"
    except OSError:
        return "its machine does not answer"
    return ""


def _end_of(number: int) -> str:
    """How process `number` ended; "" while it runs. Known only until its parent has asked (proc(5), stat)."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if _runs(number) else "killed, or it crashed"
    if state[0] not in "ZX":
        return ""
    code = int(state[49])
    return f"killed by signal {code & 127}" if code & 127 else f"exit code {code >> 8}"


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@cache
def _speaks_first() -> bool:
    """Whether this process is the first of those on its machine to report an error."""
    if not _outlived() and not _store.cache_info().currsize:
        return True  # no store: the processes have not connected
    try:
        return bool(_store().add(_key(f"spoken/{socket.gethostname()}"), 1) == 1)
    except RuntimeError:  # the process that hosts it has ended
        return True


def _say(reason: str) -> None:
    """Note why the job ends, for the terminals of other machines."""
    with suppress(RuntimeError):
        if _outlived() or _store.cache_info().currsize:
            _store().set(_key("said"), reason)


def _said() -> str:
    """Why the job ends, as a process of another machine said."""
    key = _key("said")
    return _store().get(key).decode() if _store().check([key]) else ""


@cache
def _store() -> Any:
    """The processes' key-value store: torchrun's own, or one hosted by the first process."""
    rank, place = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    first = rank == 0 and not _outlived()
    return dist.TCPStore(*place, is_master=first, wait_for_workers=False, timeout=_PATIENCE)  # type: ignore[attr-defined]


def _outlived() -> bool:
    """Whether the store is torchrun's, which outlives the worker processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _restarts() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _starts_again() -> bool:
    """Whether torchrun restarts the processes after a failure."""
    return _restarts() < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def remember_run(folder: Path, process: Process) -> None:
    """Note in the launcher's store that the processes train `folder`, for after a restart."""
    if process.world > 1 and process.first and _outlived():
        _store().set(_RUN, str(folder))


def begun_run() -> Path | None:
    """The run that the processes trained before torchrun restarted them, if they had begun one."""
    if not _restarts() or not _outlived() or not _store().check([_RUN]):
        return None
    return Path(_store().get(_RUN).decode())


def _key(name: str) -> str:
    return f"nextword/{_restarts()}/{name}"


def device_mesh(shard: str, process: Process, device: torch.device) -> Any:
    """The processes as a DeviceMesh of (copies, shards, tensor); None for a single one.

    "ddp" has no shards, "fsdp" shards over all processes, and "hybrid" over those of a machine, with a copy on each.
    """
    if process.world == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    here = {"fsdp": process.world, "hybrid": processes_here()}.get(shard, process.tensor)
    if process.world % here or here % process.tensor:
        raise UsageError("train.shard=hybrid needs as many processes on each machine; use train.shard=fsdp")
    shape = (process.world // here, here // process.tensor, process.tensor)
    return init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shards", "tensor"))


def share(model: nn.Module, mesh: Any, device: torch.device) -> nn.Module:
    """Wrap `model` (a `LossModule`) to share its gradients with all processes of `mesh`.

    Whole copies are in DDP; weights, gradients and optimizer states are sharded by FSDP2.
    DDP's gradients are means over the processes, FSDP2's are sums.
    """
    if mesh is None:
        return model
    copies, shards, tensor = mesh.shape
    if shards * tensor > 1:
        return _fully_shard(model, mesh["copies", "shards"] if copies > 1 else mesh["shards"])
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _fully_shard(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    blocks: Any = getattr(model.model, "blocks", ())
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo supports no other
            part.set_gradient_divide_factor(1.0)
    return model


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in groups that are divided among the same processes; operations on several tensors take no others."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        whole = tuple(placement.is_replicate() for placement in getattr(parameter, "placements", ()))
        groups.setdefault((getattr(parameter, "device_mesh", None), whole), []).append(parameter)
    return list(groups.values())


def total(values: list[float], process: Process, device: torch.device) -> list[float]:
    """Each number summed over the processes, in float64; those that compute the same rows count once."""
    if process.world == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    numbers: list[float] = (tensor / process.tensor).tolist()
    return numbers


def from_first(value: Any, process: Process) -> Any:
    """Broadcast an object from the first process."""
    if process.world == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def own_group() -> Any:
    """Another group of all processes, between their CPUs, for a thread of each."""
    group = dist.new_group(backend="gloo")
    _ended.append(group)
    return group


def wait(process: Process) -> None:
    """Wait for all processes (a barrier)."""
    if process.world > 1:
        dist.barrier()


def leave(code: int) -> NoReturn:
    """End one of several processes without the interpreter's shutdown.

    A communication thread that needs the interpreter during shutdown aborts the process ("terminate called without an
    active exception", about once in a hundred finished runs), and torchrun then kills the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
