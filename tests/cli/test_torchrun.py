"""The README's torchrun lines, started as they are written there, on little text and for a few steps."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nextword"]
SMALL = ["--params", "20k", "--context", "16", "--batch-size", "4", "--train-dtype", "fp32"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("own")
    return os.environ | {"NEXTWORD_CACHE": str(folder / "cache"), "NEXTWORD_LEDGER": str(folder / "ledger.jsonl")}


@pytest.fixture(autouse=True)
def books(tmp_path: Path) -> Path:
    draw, folder = random.Random(0), tmp_path / "books"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(["a", "king", "went", "to", "the"], k=300)) + ".\n")
    return folder


def torchrun(place: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=240
    )


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def said(output: str) -> list[str]:
    """The lines that are ours to end with."""
    return [line for line in output.splitlines() if line.startswith("nextword: ")]


def trained_by_two(run: Path, shard: str) -> bool:
    """Whether the run says that two processes made it, and has its report."""
    train = tomllib.loads((run / "config.toml").read_text())["train"]
    return (train["devices"], train["shard"], (run / "report.json").exists()) == (2, shard, True)


def test_two_processes_train_shards_from_text_to_a_model(tmp_path: Path, environment: dict[str, str]) -> None:
    done = torchrun(
        tmp_path, environment, "train", "books/", *SMALL, "--steps", "3", "--set", "train.shard=fsdp", "--out", "run"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps_of(tmp_path / "run") == [0, 1, 2]
    assert trained_by_two(tmp_path / "run", "fsdp")
    assert done.stdout.count("the plan") == 1


def test_a_killed_process_is_named_in_one_line_and_the_line_it_gives_resumes_the_run(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    start = [*TORCHRUN, "train", "books/", *SMALL, "--steps", "100", "--set", "run.checkpoint_every=10", "--out", "run"]
    with subprocess.Popen(
        start, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as job:
        while job.poll() is None and not list(run.glob("checkpoints/step-*")):
            time.sleep(0.01)
        second = max(map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()))
        os.kill(second, signal.SIGKILL)
        _, err = job.communicate(timeout=120)
    assert job.returncode == 1
    assert len(said(err)) == 1
    assert "rank 1 ended (killed" in said(err)[0]
    assert said(err)[0].endswith("torchrun --nproc-per-node 2 -m nextword runs resume run")
    assert len(steps_of(run)) < 100
    done = torchrun(tmp_path, environment, "runs", "resume", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(set(steps_of(run))) == list(range(100))
    assert trained_by_two(run, "ddp")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["train", "nosuch", "--steps", "3"], "no such file"),
        (["train", "books/", "--steps", "three"], "'three' is not understood"),
    ],
)
def test_what_is_wrong_is_said_once(
    arguments: list[str], wanted: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = torchrun(tmp_path, environment, *arguments)
    assert done.returncode == 1
    assert [wanted in line for line in said(done.stderr)] == [True]


def test_adapters_trained_in_shards_are_written_beside_the_weights_that_they_adapt(
    tmp_path: Path, environment: dict[str, str], tiny_model: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file

    begun = tiny_model()
    done = torchrun(
        tmp_path, environment, "train", "books/", "--model", str(begun), "--lora", "2", "--set", "train.shard=fsdp",
        "--steps", "2", "--batch-size", "4", "--train-dtype", "fp32", "--learning-rate", "1e-4", "--out", "tuned",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    base, tuned = (load_file(folder / "model.safetensors") for folder in (begun, tmp_path / "tuned"))
    changes = {name: float((tuned[name] - tensor).abs().max()) for name, tensor in base.items()}
    assert 0 < max(changes.values()) < 1e-3
