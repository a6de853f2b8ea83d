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

from ..base import free_memory
from ..base.cores import cores
from ..plan import RunConfig
from ..train.timing import time_steps
from .gpus import CONTEXT
from .table import LOG

_MEMORY_SHARE = 0.9  # of what is free at the start
_TIMED = 3.0  # seconds that steps are timed for
_PATIENCE = 60.0  # seconds for a stopped run to write its checkpoint
_CPU = ""


@dataclass(frozen=True)
class _Job:
    folder: Path
    process: subprocess.Popen[bytes]
    memory: float
    device: str  # a GPU's name, or _CPU


class LocalWorkers:
    """At most `count` runs at once, each a process with as many threads as it asks for."""

    def __init__(self, count: int = 0, gpus: Mapping[str, float] | None = None) -> None:
        """`count` 0: as many as there are cores. `gpus`: the free bytes of each; None: runs are on the CPU."""
        self.count = count or cores()
        self.planned = min(self.count, len(gpus)) if gpus else self.count
        self.most_threads = min(self.count, cores())
        free = free_memory()
        room: Mapping[str, float] = gpus or {_CPU: float("inf") if free is None else free}
        self.memory = {device: _MEMORY_SHARE * free for device, free in room.items()}
        self._jobs: list[_Job] = []

    @property
    def running(self) -> set[Path]:
        """The folders of the runs under way."""
        return {job.folder for job in self._jobs}

    def has_room(self, memory: float) -> bool:
        """Whether a run that takes `memory` bytes may start now; one always may."""
        device = self._emptiest()
        alone = all(job.device != device for job in self._jobs)
        return len(self._jobs) < self.count and (alone or self._needed(memory, device) <= self._free(device))

    def start(self, folder: Path, memory: float, threads: int = 1) -> None:
        """Train the run in `folder`."""
        environment, device = os.environ | {"OMP_NUM_THREADS": str(threads)}, self._emptiest()
        if device != _CPU:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nextword.scale.worker", str(folder)], env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._jobs.append(_Job(folder, process, self._needed(memory, device), device))

    def _emptiest(self) -> str:
        return max(self.memory, key=self._free)

    def _free(self, device: str) -> float:
        return self.memory[device] - sum(job.memory for job in self._jobs if job.device == device)

    @staticmethod
    def _needed(memory: float, device: str) -> float:
        return memory if device == _CPU else memory + CONTEXT

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
            time.sleep(0.02)
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
