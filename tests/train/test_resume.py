"""A run that is killed and goes on is, to the bit, the run that was not."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import run, start

from nextword.data import Dataset
from nextword.train.checkpoint import newest
from nextword.train.distributed import Process
from nextword.train.metrics import read_metrics

STEPS, EVERY, KILLED_AT = 300, 50, (137, 222)
KINDS = ("transformer", "lstm", "gru", "rnn")


def arguments(kind: str, folder: Path, data: Dataset) -> list[object]:
    return [kind, folder, data.folder, STEPS, "--every", EVERY]


Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of the uninterrupted run of a kind; nothing may be written there."""
    found: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp(kind)
            assert run(*arguments(kind, found[kind], data)) == 0
            assert len(losses(found[kind])) == STEPS
            assert len(tensors(found[kind])) > 10
        return found[kind]

    return of


def steps_done(folder: Path) -> list[int]:
    """The steps as they were written, those that were done twice too."""
    return [row["step"] for row in read_metrics(folder) if "loss" in row]


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_twice_and_resumed_equals_the_uninterrupted_one(
    kind: str, whole: Whole, data: Dataset, tmp_path: Path
) -> None:
    killed = arguments(kind, tmp_path, data)
    for step in KILLED_AT:
        assert run(*killed, "--kill-at", step) == -signal.SIGKILL
    assert run(*killed) == 0
    assert steps_done(tmp_path) == [*range(138), *range(100, 223), *range(200, STEPS)]
    assert losses(tmp_path) == losses(whole(kind))
    assert tensors(tmp_path) == tensors(whole(kind))


def test_the_comparison_notices_a_trainer_that_forgets_its_place_in_the_data(
    whole: Whole, data: Dataset, tmp_path: Path
) -> None:
    killed = arguments("gru", tmp_path, data)
    assert run(*killed, "--kill-at", KILLED_AT[0]) == -signal.SIGKILL
    assert run(*killed, "--lose-position", "--until", 160) == 0
    found, wanted = losses(tmp_path), losses(whole("gru"))
    assert [step for step in found if found[step] == wanted[step]] == list(range(100))  # where it went on from


def test_a_run_killed_at_any_moment_of_steps_and_checkpoints_equals_the_uninterrupted_one(
    whole: Whole, data: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(whole("gru"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{STEPS:08}")  # to step 250, all the same
    draw, killed = random.Random(0), ["gru", tmp_path, data.folder, STEPS, "--every", 1]  # mostly writing checkpoints
    before = len(steps_done(tmp_path))
    for lines in (draw.randint(1, 15), draw.randint(20, 30)):
        process = start(*killed)
        while process.is_alive() and len(steps_done(tmp_path)) < before + lines:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert run(*killed) == 0
    assert steps_done(tmp_path)[before] == STEPS - EVERY
    assert losses(tmp_path) == losses(whole("gru"))
    assert tensors(tmp_path) == tensors(whole("gru"))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(whole: Whole, tmp_path: Path) -> None:
    root = shutil.copytree(whole("gru") / "checkpoints", tmp_path / "checkpoints")
    last = max(root.glob("step-*"))
    file = next(last.glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    said: list[str] = []
    found = newest(root, Process(), said.append)
    assert found is not None
    assert found.step == STEPS - EVERY
    assert last.name in said[0]
    assert "damaged" in said[0]


def test_a_checkpoint_whose_writing_was_cut_off_is_not_seen(whole: Whole, tmp_path: Path) -> None:
    root = shutil.copytree(whole("gru") / "checkpoints", tmp_path / "checkpoints")
    last = max(root.glob("step-*"))
    last.rename(root / f".{last.name}.part")
    (root / f".{last.name}.part" / "state.json").unlink()
    found = newest(root, Process())
    assert found is not None
    assert found.step == STEPS - EVERY
    assert not list(root.glob(".*.part"))
