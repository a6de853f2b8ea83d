"""Several processes on PyTorch's own stack compute what one computes, and go on with each other's checkpoints."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from forked import run_together

from nextword.data import Dataset
from nextword.train.metrics import read_metrics

STEPS, HALF = 20, 10
RECOMPUTE = ("selective", "full")
WORLD = {"none": 1, "ddp": 2, "fsdp": 2, "hybrid": 4}  # processes of each kind; hybrid: two machines of two


def numbers(folder: Path, key: str) -> list[float]:
    found = {row["step"]: row[key] for row in read_metrics(folder) if key in row}
    return [found[step] for step in sorted(found)]


def evaluations(folder: Path) -> list[dict[str, float]]:
    return [row["val"] for row in read_metrics(folder) if "val" in row]


@pytest.fixture(scope="module")
def folders(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: "alone" to the end, half of one of each kind, and those continued as each other kind."""
    root = tmp_path_factory.mktemp("runs")

    def job(folder: str, shard: str, *extra: str) -> list[str]:
        return ["transformer", str(root / folder), str(data.folder), str(STEPS), "--shard", shard, *extra]

    def train(jobs: dict[str, list[list[str]]]) -> None:
        for shard, lines in jobs.items():
            codes = run_together(WORLD[shard], *lines, machine=2 if shard == "hybrid" else 0)
            assert codes == [0] * WORLD[shard]

    def half(folder: str, shard: str, *extra: str) -> list[str]:
        return job(folder, shard, "--until", str(HALF), *extra)

    def halves(shard: str) -> list[list[str]]:
        recomputed = [half(f"{shard}-{name}", shard, "--recompute", name) for name in RECOMPUTE]
        return [half(shard, shard), *recomputed]

    train({shard: halves(shard) for shard in WORLD} | {"none": [job("alone", "none"), *halves("none")]})
    writing = job("killed", "fsdp", "--every", "5", "--kill-writing", "10")
    assert run_together(2, writing) == [-signal.SIGKILL, 1]
    for first in WORLD:
        for second in WORLD:
            shutil.copytree(root / first, root / f"{first}-{second}")
    continued = {second: [job(f"{first}-{second}", second) for first in WORLD] for second in WORLD}
    train(continued | {"fsdp": [*continued["fsdp"], job("killed", "fsdp")]})
    return root


def furthest(folders: Path, name: str) -> float:
    """The largest difference of a run's losses from those of one process's undisturbed run."""
    losses, alone = numbers(folders / name, "loss"), numbers(folders / "alone", "loss")
    assert len(losses) in (HALF, STEPS)
    return max(abs(loss - wanted) for loss, wanted in zip(losses, alone, strict=False))


def test_processes_have_the_losses_and_gradients_of_one(folders: Path) -> None:
    alone = folders / "alone"
    for shard in WORLD:
        run = folders / f"{shard}-{shard}"
        assert numbers(run, "gradient_norm") == pytest.approx(numbers(alone, "gradient_norm"), rel=1e-4)
        assert numbers(run, "tokens") == numbers(alone, "tokens")
        last = evaluations(alone)[-1]
        assert evaluations(run)[-1] == {key: pytest.approx(value, abs=1e-5) for key, value in last.items()}


def test_recomputed_activations_give_the_same_losses(folders: Path) -> None:
    differences = {(shard, name): furthest(folders, f"{shard}-{name}") for shard in WORLD for name in RECOMPUTE}
    assert differences == dict.fromkeys(differences, pytest.approx(0, abs=1e-5))


def test_a_run_goes_on_with_other_processes_and_shards(folders: Path) -> None:
    differences = {(first, second): furthest(folders, f"{first}-{second}") for first in WORLD for second in WORLD}
    assert differences == dict.fromkeys(differences, pytest.approx(0, abs=1e-5))
    assert len(numbers(folders / "ddp", "loss")) == HALF
    assert len(numbers(folders / "ddp-hybrid", "loss")) == STEPS


def test_a_run_killed_while_a_checkpoint_is_written_and_training_goes_on_is_continued_to_the_bit(folders: Path) -> None:
    steps = [row["step"] for row in read_metrics(folders / "killed") if "loss" in row]
    begun_again = steps.index(5, 6)
    assert steps[:begun_again] == list(range(begun_again))  # beyond step 10, whose checkpoint was being written
    assert begun_again > 11
    assert steps[begun_again:] == list(range(5, STEPS))
    assert numbers(folders / "killed", "loss") == numbers(folders / "fsdp-fsdp", "loss")
    assert not list((folders / "killed" / "checkpoints").glob(".*"))
