"""Two processes on PyTorch's own stack compute what one computes, and go on with each other's checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nextword.data import Dataset
from nextword.train.metrics import read_metrics

SCRIPT = Path(__file__).with_name("kill_me.py")
STEPS = 20


def command(processes: int, shard: str, folder: Path, data: Dataset, *extra: str) -> list[str]:
    script = [str(SCRIPT), "transformer", str(folder), str(data.folder), str(STEPS), "--shard", shard, *extra]
    if processes == 1:
        return [sys.executable, *script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *script]


def run(*arguments: object, **options: object) -> None:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, **options)  # type: ignore
    assert done.returncode == 0, done.stderr[-3000:]


def numbers(folder: Path, key: str) -> list[float]:
    found = {row["step"]: row[key] for row in read_metrics(folder) if key in row}
    return [found[step] for step in sorted(found)]


@pytest.fixture(scope="module")
def alone(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(1, "none", folder, data)
    return folder


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_and_gradients_of_one(
    shard: str, alone: Path, data: Dataset, tmp_path: Path
) -> None:
    run(2, shard, tmp_path, data)
    assert len(numbers(tmp_path, "loss")) == STEPS
    assert numbers(tmp_path, "loss") == pytest.approx(numbers(alone, "loss"), abs=1e-5)
    assert numbers(tmp_path, "gradient_norm") == pytest.approx(numbers(alone, "gradient_norm"), rel=1e-4)
    assert numbers(tmp_path, "tokens") == numbers(alone, "tokens")
    val, expected = ([row["val"] for row in read_metrics(each) if "val" in row] for each in (tmp_path, alone))
    assert len(val) == len(expected) > 0
    for one, other in zip(val, expected, strict=True):
        assert one == {key: pytest.approx(value, abs=1e-5) for key, value in other.items()}


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_checkpoint_of_two_processes_resumes_on_one_and_the_other_way_round(
    first: int, second: int, alone: Path, data: Dataset, tmp_path: Path
) -> None:
    run(first, "fsdp" if first == 2 else "none", tmp_path, data, "--until", "10")
    assert len(numbers(tmp_path, "loss")) == 10
    run(second, "fsdp" if second == 2 else "none", tmp_path, data)
    assert numbers(tmp_path, "loss") == pytest.approx(numbers(alone, "loss"), abs=1e-5)
    assert len(numbers(tmp_path, "loss")) == STEPS


def test_a_killed_worker_ends_the_job_which_then_goes_on_from_its_checkpoint(
    alone: Path, data: Dataset, tmp_path: Path
) -> None:
    with subprocess.Popen(command(2, "ddp", tmp_path, data), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        while job.poll() is None and not list(tmp_path.glob("checkpoints/step-*")):
            time.sleep(0.01)
        workers = children(job.pid)
        assert workers
        os.kill(workers[-1], signal.SIGKILL)
        job.communicate(timeout=120)
    assert job.returncode != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    run(2, "ddp", tmp_path, data)
    assert numbers(tmp_path, "loss") == pytest.approx(numbers(alone, "loss"), abs=1e-5)


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(each) for each in found]
