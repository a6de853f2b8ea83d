"""Runs of several lengths from one trunk: under wsd, they are the same run until the shorter one's rate decays.

So a longer run may start from a checkpoint of a shorter one, and gives the same losses to the bit as if it had been
trained from its beginning (Hägele et al. 2024, 2405.18392, section 3).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..base import RunError, atomic_write
from ..plan import RunConfig
from ..plan.run_config import TrainConfig
from . import checkpoint as checkpoints
from .metrics import METRICS, read_metrics
from .run_dir import RECORD, RunRecord, writing
from .schedules import decay_start


def shared_steps(one: RunConfig, other: RunConfig) -> int:
    """The steps from the beginning on that two runs have in common; 0 if they differ in more than their length."""
    first, second = one.train, other.train
    alike = replace(first, steps=second.steps) == second and one.model == other.model
    if first.schedule != "wsd" or not alike or one.run.threads != other.run.threads:
        return 0
    return min(_stable(first), _stable(second))


def start_from(donor: Path, folder: Path, config: RunConfig) -> int:
    """Give the new run in `folder` the newest sound checkpoint of `donor` from the steps they share; returns its step.

    The lines of metrics before it are copied too. 0: there is none, and nothing was written.
    """
    if not (donor / RECORD).exists():
        return 0
    record = RunRecord.read(donor)
    shared = 0 if record.changes else shared_steps(record.config, config)
    for path in reversed(checkpoints.stored(donor / "checkpoints")):
        if int(path.name.removeprefix("step-")) <= shared:
            try:
                found = checkpoints.read(path)
            except RunError:
                continue
            with writing(folder):
                _copy(found, donor, folder, config)
            return found.step
    return 0


def _stable(train: TrainConfig) -> int:
    return decay_start(train.steps, train.decay_fraction)


def _copy(found: checkpoints.Checkpoint, donor: Path, folder: Path, config: RunConfig) -> None:
    train = {**found.configuration["train"], "steps": config.train.steps}
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoints.copy(found, folder / "checkpoints", {**found.configuration, "train": train})
    with atomic_write(folder / METRICS) as file:
        for row in read_metrics(donor):
            if "loss" in row and row["step"] < found.step:
                file.write(json.dumps(row) + "\n")
