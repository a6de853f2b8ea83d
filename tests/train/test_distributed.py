"""Several processes on PyTorch's own stack compute what one computes, and go on with each other's checkpoints."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from forked import run_together
from safetensors.numpy import load_file

from nextword.data import Dataset
from nextword.train.metrics import read_metrics

STEPS, HALF = 10, 5
RECOMPUTE = ("selective", "full")
KINDS = {  # processes and options
    "none": (1, "--shard none"),
    "ddp": (2, "--shard ddp"),
    "fsdp": (2, "--shard fsdp"),
    "hybrid": (4, "--shard hybrid"),  # two machines of two
    "tensor": (2, "--shard ddp --tensor 2"),
    "fsdp and tensor": (4, "--shard fsdp --tensor 2"),
}


def numbers(folder: Path, key: str) -> list[float]:
    found = {row["step"]: row[key] for row in read_metrics(folder) if key in row}
    return [found[step] for step in sorted(found)]


def evaluations(folder: Path) -> list[dict[str, float]]:
    return [row["val"] for row in read_metrics(folder) if "val" in row]


@pytest.fixture(scope="module")
def folders(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: "alone" to the end, half of one of each kind, and those continued as each other kind."""
    root = tmp_path_factory.mktemp("runs")

    def job(folder: str, kind: str, *extra: str) -> list[str]:
        return ["transformer", str(root / folder), str(data.folder), str(STEPS), *KINDS[kind][1].split(), *extra]

    def train(jobs: dict[str, list[list[str]]]) -> None:
        for kind, lines in jobs.items():
            processes = KINDS[kind][0]
            codes = run_together(processes, *lines, machine=2 if kind == "hybrid" else 0)
            assert codes == [0] * processes

    def half(folder: str, kind: str, *extra: str) -> list[str]:
        return job(folder, kind, "--until", str(HALF), *extra)

    def halves(kind: str) -> list[list[str]]:
        recomputed = [half(f"{kind}-{name}", kind, "--recompute", name) for name in RECOMPUTE]
        return [half(kind, kind), *recomputed]

    train({kind: halves(kind) for kind in KINDS} | {"none": [job("alone", "none", "--write"), *halves("none")]})
    writing = job("killed", "fsdp", "--every", "2", "--kill-writing", "4")
    assert run_together(2, writing) == [-signal.SIGKILL, 1]
    for first in KINDS:
        for second in KINDS:
            shutil.copytree(root / first, root / f"{first}-{second}")
    adapt = ("--base", str(root / "alone"), "--write")
    more = {"none": [job("adapted-none", "none", *adapt)],
            "fsdp": [job("killed", "fsdp"), job("adapted-fsdp", "fsdp", *adapt)]}  # fmt: skip
    for second in KINDS:
        lines = [job(f"{first}-{second}", second, *["--write"][: first == second]) for first in KINDS]
        train({second: [*lines, *more.get(second, [])]})
    return root


def furthest(folders: Path, name: str) -> float:
    """The largest difference of a run's losses from those of one process's undisturbed run."""
    losses, alone = numbers(folders / name, "loss"), numbers(folders / "alone", "loss")
    assert len(losses) in (HALF, STEPS)
    return max(abs(loss - wanted) for loss, wanted in zip(losses, alone, strict=False))


def test_processes_have_the_losses_and_gradients_of_one(folders: Path) -> None:
    alone = folders / "alone"
    for kind in KINDS:
        run = folders / f"{kind}-{kind}"
        assert numbers(run, "gradient_norm") == pytest.approx(numbers(alone, "gradient_norm"), rel=1e-4)
        assert numbers(run, "tokens") == numbers(alone, "tokens")
        last = evaluations(alone)[-1]
        assert evaluations(run)[-1] == {key: pytest.approx(value, abs=1e-5) for key, value in last.items()}


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_the_model_written_in_the_end_is_whole(folders: Path) -> None:
    for kind in KINDS:
        written = weights(folders / f"{kind}-{kind}")
        assert written.keys() == weights(folders / "alone").keys()
        for name, tensor in weights(folders / "alone").items():
            assert written[name] == pytest.approx(tensor, abs=1e-5), (kind, name)


def test_adapters_trained_in_shards_are_merged_into_the_weights_that_they_adapt(folders: Path) -> None:
    base, alone, sharded = (weights(folders / name) for name in ("alone", "adapted-none", "adapted-fsdp"))
    for name, tensor in alone.items():
        assert sharded[name] == pytest.approx(tensor, abs=1e-5), name
    assert any(abs(alone[name] - tensor).max() > 1e-3 for name, tensor in base.items())


def test_recomputed_activations_give_the_same_losses(folders: Path) -> None:
    differences = {(kind, name): furthest(folders, f"{kind}-{name}") for kind in KINDS for name in RECOMPUTE}
    assert differences == dict.fromkeys(differences, pytest.approx(0, abs=1e-5))


def test_a_run_goes_on_with_other_processes_and_shards(folders: Path) -> None:
    differences = {(first, second): furthest(folders, f"{first}-{second}") for first in KINDS for second in KINDS}
    assert differences == dict.fromkeys(differences, pytest.approx(0, abs=1e-5))
    assert len(numbers(folders / "ddp", "loss")) == HALF
    assert len(numbers(folders / "ddp-hybrid", "loss")) == STEPS


def test_a_run_killed_while_a_checkpoint_is_written_and_training_goes_on_is_continued_to_the_bit(folders: Path) -> None:
    steps = [row["step"] for row in read_metrics(folders / "killed") if "loss" in row]
    begun_again = steps.index(2, 3)
    assert steps[:begun_again] == list(range(begun_again))  # beyond step 4, whose checkpoint was being written
    assert begun_again > 5
    assert steps[begun_again:] == list(range(2, STEPS))
    assert numbers(folders / "killed", "loss") == numbers(folders / "fsdp-fsdp", "loss")
    assert not list((folders / "killed" / "checkpoints").glob(".*"))
