"""Runs as tasks of a Ray cluster: one task is one run in a fresh process on one node, which sees the sweep's folder.

A finished run returns at once and an unfinished one is continued, so a task that Ray starts again after a lost worker
or node, and the same command after a lost driver, need nothing of Ray: what is known is in the folder.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..base import RunError, UsageError, units
from ..base.cluster import ask_nodes, check_nodes, cpus_of, loss, nodes_of, token_in, unseen
from ..base.cores import most_threads
from ..data import open_dataset
from ..plan import RunConfig
from ..train.run_dir import is_locked
from ..train.timing import time_steps
from .gpus import gpu_share, smallest_gpu
from .table import LOG
from .worker import INTERRUPTED, work

if TYPE_CHECKING:
    from .design import DeviceType
    from .sweep import Sweep

RAY_LOG = "ray.log"  # of a sweep's folder
_RETRIES = 3  # of a run whose worker or node is lost
_TIMED = 3.0  # seconds that steps are timed for
_TIMING_SECONDS = 60.0  # for a node to have timed them
_PATIENCE = 60.0  # seconds for a stopped run to write its checkpoint
_LOCK_SECONDS = 120.0  # for a file server to give up the lock of a lost node
_GLANCE = 0.001  # of a GPU, to look at it


class RayWorkers:
    """At most `count` runs at once, each a task with as many CPUs as it has threads, and a share of a GPU.

    A run of several `processes` is one task on one node, with a GPU for each.
    """

    def __init__(self, ray: Any, count: int = 0, device: DeviceType = "cpu", processes: int = 1) -> None:
        """`count` 0: as many as the cluster has CPUs for. Raises UsageError if no node has the GPUs of a run."""
        nodes = nodes_of(ray)
        cpus = [cpus_of(node) for node in nodes]
        with_gpu = [node for node in nodes if device == "cuda" and node["Resources"].get("GPU", 0) >= processes]
        if device == "cuda" and not with_gpu:
            wanted = "a GPU, and no node of the cluster has one" if processes == 1 else (
                f"{processes} GPUs each, and no node of the cluster has as many")  # fmt: skip
            raise UsageError(f"the runs of this sweep are on {wanted}")
        self.count = count or max(1, sum(count // processes for count in cpus))
        self.most_threads = max(1, min(max(cpus) // processes, most_threads()))
        self._processes = processes
        self._gpus = sum(node["Resources"]["GPU"] // processes * processes for node in with_gpu)
        self.planned = min(self.count, int(self._gpus) // processes) if with_gpu else self.count
        found = ask_nodes(ray, smallest_gpu, (), with_gpu, gpus=_GLANCE)
        self._gpu_memory = min((memory for _, memory in found), default=0.0)
        self._largest_cpus = max(cpus)
        self._largest_memory = max(node["Resources"].get("memory", 0.0) for node in nodes)
        self._ray, self._task = ray, ray.remote(max_calls=1, max_retries=_RETRIES, retry_exceptions=False)(_train)
        self._runs: dict[Any, tuple[Path, float]] = {}  # folder and share of a GPU, by the task's result to come

    @property
    def running(self) -> set[Path]:
        """The folders of the runs under way."""
        return {folder for folder, _ in self._runs.values()}

    def has_room(self, memory: float) -> bool:
        """Whether a run that takes `memory` bytes may start now."""
        used = sum(share for _, share in self._runs.values())
        return len(self._runs) < self.count and used + self._share(memory) <= self._gpus

    def _share(self, memory: float) -> float:
        """GPUs of a run: a part of one, or one for each of its processes."""
        if self._processes > 1:
            return self._processes if self._gpus else 0.0
        return gpu_share(memory, self._gpu_memory) if self._gpus else 0.0

    def start(self, folder: Path, memory: float, threads: int) -> None:
        """Train the run in `folder`. Raises RunError if no node could ever run it, for which Ray would wait."""
        share, cpus, memory = self._share(memory), threads * self._processes, memory * self._processes
        wanted: dict[str, float] = {"num_cpus": cpus}
        wanted |= {"num_gpus": share} if share else {"memory": int(memory)}
        if cpus > self._largest_cpus:
            raise RunError(f"{folder.name} runs on {cpus} threads, and no node of the cluster offers more than"
                           f" {self._largest_cpus} CPUs")  # fmt: skip
        if not share and memory > self._largest_memory:
            raise RunError(f"{folder.name} takes {units.format_bytes(memory)}, and no node of the cluster offers more"
                           f" than {units.format_bytes(self._largest_memory)}")  # fmt: skip
        self._runs[self._task.options(**wanted).remote(str(folder.absolute()))] = (folder, share)

    def step_seconds(self, config: RunConfig) -> float:
        """Seconds of a step, timed on a node; NaN if none comes to it."""
        share = self._share(0.0) and 1.0
        task = self._ray.remote(max_calls=1)(_time)
        timed = task.options(num_cpus=config.run.threads, num_gpus=share).remote(config)
        try:
            return float(self._ray.get(timed, timeout=_TIMING_SECONDS))
        except self._ray.exceptions.RayError:
            self._ray.cancel(timed, force=True)
            return math.nan

    def wait(self, seconds: float) -> dict[Path, int]:
        """The runs that ended, with 0 or another exit code, after at most `seconds`."""
        if not self._runs:
            return {}
        ready, _ = self._ray.wait(list(self._runs), timeout=seconds)
        return {(folder := self._runs.pop(reference)[0]): self._code(reference, folder) for reference in ready}

    def _code(self, reference: Any, folder: Path) -> int:
        """The exit code of a task. What Ray says of a lost worker is written into the run's log."""
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.TaskCancelledError:
            return INTERRUPTED
        except self._ray.exceptions.RayError as error:
            (folder / LOG).write_text(loss(error) + "\n", encoding="utf-8")
            return 1

    def close(self) -> None:
        """End every run after its step under way, with a checkpoint; those that do not end are killed."""
        if not self._runs:
            return
        for reference in self._runs:
            self._ray.cancel(reference)  # a SIGINT
        _, left = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=_PATIENCE)
        for reference in left:
            self._ray.cancel(reference, force=True)
        self._runs.clear()


def _train(folder: str) -> int:
    """Train a run on this node and return the exit code; its log is where that of a local run is."""
    end = time.monotonic() + _LOCK_SECONDS
    while is_locked(Path(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    with (Path(folder) / LOG).open("w", encoding="utf-8") as log, redirect_stderr(log):
        os.dup2(log.fileno(), 2)  # of this process, which ends with the run, and of those it starts
        try:
            return work(Path(folder))
        except Exception:  # with its last line in the log, as that of a local process
            traceback.print_exc()
            return 1


def _time(config: RunConfig) -> float:
    return time_steps(config, torch.device(config.run.device), config.run.threads, _TIMED).step(config.train)


def message_log(folder: Path) -> Callable[[str], None]:
    """Writes messages into a sweep's folder, once there is one."""

    def write(text: str) -> None:
        if folder.exists():
            with (folder / RAY_LOG).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")

    return write


def check_cluster(ray: Any, sweep: Sweep) -> None:
    """Raise RunError unless every node has this nextword, and sees the folder and the text of a sweep."""
    data = sweep.place.data
    with token_in(sweep.folder) as token:
        check_nodes(ray, _lacking, (token, str(data.folder.absolute()), data.fingerprint), nodes_of(ray))


def _lacking(token: str, data: str, fingerprint: str) -> str:
    lack = unseen(token, data)
    if not lack and open_dataset(data).fingerprint != fingerprint:
        lack = f"sees another text in {data}"
    return lack
