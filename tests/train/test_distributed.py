"""Several processes on PyTorch's own stack compute what one computes, and go on with each other's checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import run_together

from nextword.data import Dataset
from nextword.train.metrics import read_metrics

STEPS, HALF = 20, 10
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

    train({shard: [job(shard, shard, "--until", str(HALF))] for shard in WORLD} | {
        "none": [job("alone", "none"), job("none", "none", "--until", str(HALF))]
    })  # fmt: skip
    for first in WORLD:
        for second in WORLD:
            shutil.copytree(root / first, root / f"{first}-{second}")
    train({second: [job(f"{first}-{second}", second) for first in WORLD] for second in WORLD})
    return root


@pytest.mark.parametrize("shard", WORLD)
def test_processes_have_the_losses_and_gradients_of_one(shard: str, folders: Path) -> None:
    run, alone = folders / f"{shard}-{shard}", folders / "alone"
    assert numbers(run, "gradient_norm") == pytest.approx(numbers(alone, "gradient_norm"), rel=1e-4)
    assert numbers(run, "tokens") == numbers(alone, "tokens")
    last = evaluations(alone)[-1]
    assert evaluations(run)[-1] == {key: pytest.approx(value, abs=1e-5) for key, value in last.items()}


@pytest.mark.parametrize("second", WORLD)
@pytest.mark.parametrize("first", WORLD)
def test_a_run_goes_on_with_other_processes_and_shards(first: str, second: str, folders: Path) -> None:
    losses = numbers(folders / f"{first}-{second}", "loss")
    assert len(losses) == STEPS
    assert losses == pytest.approx(numbers(folders / "alone", "loss"), abs=1e-5)
    assert len(numbers(folders / first, "loss")) == HALF
