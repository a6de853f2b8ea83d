"""A run that is killed and goes on is, to the bit, the run that was not."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nextword.data import Dataset
from nextword.train.checkpoint import newest
from nextword.train.distributed import Process
from nextword.train.trainer import read_metrics

STEPS = 60
SCRIPT = Path(__file__).with_name("kill_me.py")


def command(kind: str, folder: Path, data: Dataset, *extra: str) -> list[str]:
    return [sys.executable, str(SCRIPT), kind, str(folder), str(data.folder), str(STEPS), *extra]


def run(kind: str, folder: Path, data: Dataset, *extra: str) -> None:
    subprocess.run(command(kind, folder, data, *extra), check=True, capture_output=True, timeout=240)


def run_and_kill(kind: str, folder: Path, data: Dataset, moments: list[int]) -> int:
    """SIGKILL once the metrics show so many lines, again and again, then run to the end; returns the kills."""
    kills = 0
    for lines in moments:
        process = subprocess.Popen(command(kind, folder, data), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and steps_written(folder) < lines:
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    run(kind, folder, data)
    return kills


def steps_written(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def losses(folder: Path) -> dict[int, bytes]:
    """Each step's loss as the bits of a double; the last time it was done counts."""
    return {row["step"]: struct.pack("<d", row["loss"]) for row in read_metrics(folder) if "loss" in row}


def tensors(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight and optimizer state at the end."""
    from safetensors.numpy import load_file

    checkpoint = newest(folder / "checkpoints", Process())
    assert checkpoint is not None
    assert checkpoint.step == STEPS
    found = {}
    for file in sorted(checkpoint.folder.glob("*.safetensors")):
        found |= {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in load_file(file).items()}
    return found


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "rnn"])
def test_a_run_killed_at_any_moment_and_resumed_equals_the_uninterrupted_one(
    kind: str, data: Dataset, tmp_path: Path
) -> None:
    run(kind, tmp_path / "whole", data)
    draw = random.Random(kind)
    kills = run_and_kill(kind, tmp_path / "killed", data, [draw.randint(3, 25), draw.randint(30, 50)])
    assert kills
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == STEPS
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    assert len(tensors(tmp_path / "whole")) > 10


def test_the_comparison_notices_a_trainer_that_forgets_its_place_in_the_data(data: Dataset, tmp_path: Path) -> None:
    run("gru", tmp_path / "whole", data)
    process = subprocess.Popen(command("gru", tmp_path / "killed", data))
    while process.poll() is None and steps_written(tmp_path / "killed") < 25:
        time.sleep(0.001)
    process.kill()
    process.wait()
    run("gru", tmp_path / "killed", data, "--lose-position")
    assert losses(tmp_path / "killed") != losses(tmp_path / "whole")
    assert tensors(tmp_path / "killed") != tensors(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(data: Dataset, tmp_path: Path) -> None:
    run("gru", tmp_path / "run", data)
    root = tmp_path / "run" / "checkpoints"
    last = max(root.glob("step-*"))
    file = next(last.glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    said: list[str] = []
    found = newest(root, Process(), said.append)
    assert found is not None
    assert found.step == STEPS - 10
    assert last.name in said[0]
    assert "damaged" in said[0]


def test_a_checkpoint_whose_writing_was_cut_off_is_not_seen(data: Dataset, tmp_path: Path) -> None:
    run("gru", tmp_path / "run", data)
    root = tmp_path / "run" / "checkpoints"
    last = max(root.glob("step-*"))
    last.rename(root / f".{last.name}.part")
    (root / f".{last.name}.part" / "state.json").unlink()
    found = newest(root, Process())
    assert found is not None
    assert found.step == STEPS - 10
    assert not list(root.glob(".*.part"))
