"""kill_me in processes that find torch imported: a run of two seconds does not pay four for that again."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess

import kill_me

from nextword.train.distributed import leave

# A server that imports and computes nothing forks each process; a fork of pytest itself would hold its threads' locks.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["nextword.train.run", "torch._dynamo", "torch.distributed.checkpoint.hf_storage"])


def start(*arguments: object) -> BaseProcess:
    """A process that runs `kill_me ARGUMENTS`."""
    process = _context.Process(target=_run, args=([str(each) for each in arguments],))
    process.start()
    return process


def run(*arguments: object) -> int | None:
    """Run `kill_me ARGUMENTS` to its end; its exit code, minus the number of the signal that killed it."""
    process = start(*arguments)
    process.join(240)
    return process.exitcode


def run_together(world: int, *jobs: list[str], machine: int = 0) -> list[int | None]:
    """Run `kill_me` with each of `jobs` in turn in `world` processes, `machine` on each machine; their exit codes."""
    port = _free_port()
    processes = []
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": machine or world,
                 "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # fmt: skip
        environment = {name: str(value) for name, value in place.items()} if world > 1 else {}
        processes.append(_context.Process(target=_run_jobs, args=(jobs, environment)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _run_jobs(jobs: tuple[list[str], ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for arguments in jobs:
        _run(arguments)
    if environment:
        leave(0)


def _run(arguments: list[str]) -> None:
    gc.freeze()  # what the server imported is no rubbish, and to look at it is to copy it
    sys.argv[1:] = arguments
    kill_me.main()
