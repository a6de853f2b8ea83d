"""The command lines of docs for several processes, started on little text and for a few steps."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

NEXTWORD = [sys.executable, "-m", "nextword"]
CLUSTER = Path(__file__).parents[2] / "docs" / "cluster.md"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALL = ["--params", "20k", "--context", "16", "--batch-size", "4", "--train-dtype", "fp32"]
MANY = ["--steps", "100", "--set", "run.checkpoint_every=10", "--set", "run.evaluate_every=0"]


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


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command line beside the books."""

    def started(*command: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return started


def ended(job: subprocess.Popen[str]) -> tuple[str, str]:
    """What a job that succeeded printed, and its messages."""
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err[-3000:]
    return out, err


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def kill_last_process(job: subprocess.Popen[str], run: Path) -> None:
    """Kill the last of the job's processes, as nothing can be caught or cleaned up, once there is a checkpoint."""
    while job.poll() is None and not list(run.glob("checkpoints/step-*")):
        time.sleep(0.01)
    os.kill(max(map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split())), signal.SIGKILL)


def test_a_killed_process_is_named_in_one_line_and_the_line_it_gives_resumes_the_run(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start(*NEXTWORD, "train", "books/", *SMALL, *MANY, "--out", "run", "--processes", "2")
    kill_last_process(job, run)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 1
    assert out.count("the plan") == 1
    *before, said = err.splitlines()
    assert said.startswith(f"nextword: rank 1 on {socket.gethostname()} ended (killed")
    assert said.endswith("; continue: nextword runs resume run --processes 2")
    assert not any(word in line for line in before for word in ("nextword:", "Gloo", "Traceback", "Error"))
    assert len(steps_of(run)) < 100
    ended(start(*NEXTWORD, "runs", "resume", "run", "--processes", "2", "--tensor-parallel", "2"))
    assert sorted(set(steps_of(run))) == list(range(100))
    assert (run / "report.json").exists()


def test_a_process_killed_on_one_machine_is_named_on_the_other_and_torchrun_goes_on_from_the_last_checkpoint(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, socket\nsocket.gethostname = lambda: os.environ['MACHINE']")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = f"localhost:{probe.getsockname()[1]}"
    line = re.search(r"^torchrun (--nnodes 2 .*)$", CLUSTER.read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    here = {"HOST:29500": place, "/shared/books": "books/", "/shared/runs/mine": "run"}
    words = [here.get(word, word) for word in line[1].split()]
    budget = words.index("--tokens")
    words[budget : budget + 2] = [*SMALL, *MANY]
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [*TORCHRUN, "--local-addr", "localhost", *words]
    jobs = [start(*command, MACHINE=name, PYTHONPATH=path) for name in ("alpha", "beta")]
    kill_last_process(jobs[1], tmp_path / "run")
    out, err = zip(*map(ended, jobs), strict=True)
    assert "".join(out).count("the plan") == 1
    said = [line for line in err[0].splitlines() if line.startswith("nextword: ")]
    assert len(said) == 1
    assert re.match(r"nextword: rank [01] on beta ended \(killed, or it crashed\); its launcher starts again", said[0])
    assert sorted(set(steps_of(tmp_path / "run"))) == list(range(100))
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["train"]["devices"] == 2
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["train", "nosuch", "--steps", "3", "--processes", "2"], "no such file"),
        (["train", "books/", "--steps", "3", "--processes", "some"], "--processes some: give a number"),
    ],
)
def test_what_is_wrong_is_said_once(
    arguments: list[str], wanted: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    job = start(*NEXTWORD, *arguments)
    _, err = job.communicate(timeout=240)
    assert job.returncode == 2
    assert [wanted in line for line in err.splitlines()] == [True]
