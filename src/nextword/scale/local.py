"""Runs in processes of their own on this machine, as many at once as cores and memory allow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base import UsageError, free_memory
from ..base.cores import cores
from ..plan import RunConfig
from ..train.timing import time_steps
from .gpus import CONTEXT
from .table import LOG

_MEMORY_SHARE = 0.9  # of what is free at the start
_TIMED = 3.0  # seconds that steps are timed for
_PATIENCE = 60.0  # seconds for a stopped run to write its checkpoint
_POLL_SECONDS = 0.05
_CPU = ("",)


@dataclass(frozen=True)
class _Job:
    folder: Path
    process: subprocess.Popen[bytes]
    memory: float  # on each device
    devices: tuple[str, ...]  # names of GPUs, or _CPU


class LocalWorkers:
    """At most `count` runs at once, each of `processes` with as many threads as it asks for."""

    def __init__(self, count: int = 0, gpus: Mapping[str, float] | None = None, processes: int = 1) -> None:
        """`count` 0: as many as there are cores for. `gpus`: the free bytes of each; None: runs are on the CPU.

        Raises UsageError for fewer GPUs than a run's processes.
        """
        if gpus and len(gpus) < processes:
            raise UsageError(f"--processes {processes}: each takes a GPU, and this machine has {len(gpus)}")
        self.count = count or max(1, cores() // processes)
        self.planned = min(self.count, len(gpus) // processes) if gpus else self.count
        self.most_threads = max(1, min(self.count, cores() // processes))
        self._processes = processes
        free = free_memory()
        room: Mapping[str, float] = gpus or {_CPU[0]: float("inf") if free is None else free}
        self.memory = {device: _MEMORY_SHARE * free for device, free in room.items()}
        self._jobs: list[_Job] = []

    @property
    def running(self) -> set[Path]:
        """The folders of the runs under way."""
        return {job.folder for job in self._jobs}

    def has_room(self, memory: float) -> bool:
        """Whether a run that takes `memory` bytes may start now; one always may."""
        devices = self._emptiest()
        alone = not any(set(devices) & set(job.devices) for job in self._jobs)
        fits = self._needed(memory, devices) <= min(map(self._free, devices))
        return len(self._jobs) < self.count and (alone or fits)

    def start(self, folder: Path, memory: float, threads: int = 1) -> None:
        """Train the run in `folder`."""
        environment, devices = os.environ | {"OMP_NUM_THREADS": str(threads)}, self._emptiest()
        if devices != _CPU:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nextword.scale.worker", str(folder)], env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._jobs.append(_Job(folder, process, self._needed(memory, devices), devices))

    def _emptiest(self) -> tuple[str, ...]:
        """The devices for a run: a GPU for each of its processes."""
        return tuple(sorted(self.memory, key=self._free, reverse=True)[: self._processes])

    def _free(self, device: str) -> float:
        return self.memory[device] - sum(job.memory for job in self._jobs if device in job.devices)

    def _needed(self, memory: float, devices: tuple[str, ...]) -> float:
        """Bytes on each device of a run whose processes take `memory` each."""
        return memory * self._processes if devices == _CPU else memory + CONTEXT

    def step_seconds(self, config: RunConfig) -> float:
        """Seconds of a step, timed in this process."""
        return time_steps(config, torch.device(config.run.device), config.run.threads, _TIMED).step(config.train)

    def wait(self, seconds: float) -> dict[Path, int]:
        """The runs that ended, with their exit codes, after at most `seconds`."""
        end = time.monotonic() + seconds
        while self._jobs:
            ended = {job.folder: code for job in self._jobs if (code := job.process.poll()) is not None}
            if ended or time.monotonic() >= end:
                self._jobs = [job for job in self._jobs if job.folder not in ended]
                return ended
            time.sleep(_POLL_SECONDS)
        return {}

    def close(self) -> None:
        """End every run after its step under way, with a checkpoint; those that do not end are killed."""
        for job in self._jobs:
            job.process.send_signal(signal.SIGINT)
        end = time.monotonic() + _PATIENCE
        for job in self._jobs:
            try:
                job.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
        self._jobs.clear()
