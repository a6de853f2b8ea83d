"""Runs of a sweep on GPUs: how many share one, here and on a cluster. What needs a GPU is marked `gpu`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import Here

from nextword.base import UsageError
from nextword.scale import cluster
from nextword.scale.cells import config_of, make_folder
from nextword.scale.create import chosen_device
from nextword.scale.gpus import CONTEXT, free_gpus, gpu_share
from nextword.scale.local import LocalWorkers
from nextword.scale.sweep import Sweep
from nextword.train.planning import Machine
from nextword.train.run_dir import read_report

NewSweep = Callable[[Path], Sweep]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
RUN = 1e9  # bytes


@pytest.mark.parametrize(
    ("memory", "whole", "runs"), [(1e9, 8e9, 5), (1e9, 80e9, 50), (70e9, 80e9, 1), (200e9, 80e9, 1)]
)
def test_as_many_runs_share_a_gpu_as_fit_its_memory(memory: float, whole: float, runs: int) -> None:
    share = gpu_share(memory, whole)
    assert int(1 / share) == runs
    assert runs * share <= 1
    assert runs == 1 or runs * (memory + CONTEXT) <= whole


def test_runs_here_go_to_the_gpu_with_the_most_free_memory_until_all_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: chosen.append(env["CUDA_VISIBLE_DEVICES"]))
    workers = LocalWorkers(10, {"2": 6 * (RUN + CONTEXT), "5": 3 * (RUN + CONTEXT)})
    while workers.has_room(RUN):
        workers.start(tmp_path, RUN)
    assert chosen[:4] == ["2", "2", "2", "5"]
    assert (chosen.count("2"), chosen.count("5")) == (5, 2)  # of nine tenths of each
    assert workers.planned == 2


def test_a_run_of_several_processes_has_a_gpu_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: chosen.append(env["CUDA_VISIBLE_DEVICES"]))
    gpus = {"0": 2 * (RUN + CONTEXT), "1": 3 * (RUN + CONTEXT), "2": 1.5 * (RUN + CONTEXT), "3": 2.5 * (RUN + CONTEXT)}
    workers = LocalWorkers(10, gpus, processes=2)
    while workers.has_room(RUN):
        workers.start(tmp_path, RUN)
    assert chosen == ["1,3", "0,1", "2,3"]
    assert workers.planned == 2
    with pytest.raises(UsageError, match="--processes 2: each takes a GPU, and this machine has 1"):
        LocalWorkers(10, {"0": 1e12}, processes=2)


@dataclass
class Cluster:
    """A cluster that answers what nodes it has, and notes what tasks ask for."""

    resources: list[dict[str, float]]
    asked: list[dict[str, float]] = field(default_factory=list)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in self.resources]

    def remote(self, **_: Any) -> Callable[[Any], Cluster]:
        return lambda function: self

    def options(self, **wanted: float) -> Any:
        self.asked.append(wanted)
        return SimpleNamespace(remote=lambda folder: len(self.asked))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GB on every GPU of a cluster."""
    monkeypatch.setattr(cluster, "ask_nodes", lambda ray, look, arguments, nodes, gpus: [("host", 8e9)] * len(nodes))


@pytest.mark.usefixtures("memory")
def test_a_run_of_several_processes_is_one_task_on_a_node_with_as_many_gpus(tmp_path: Path) -> None:
    ray = Cluster([{"CPU": 8.0, "GPU": 4.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}])
    workers = cluster.RayWorkers(ray, device="cuda", processes=2)
    while workers.has_room(RUN):
        workers.start(tmp_path / str(len(ray.asked)), RUN, 1)
    assert ray.asked == [{"num_cpus": 2, "num_gpus": 2}] * 2
    assert (workers.count, workers.planned) == (8, 2)
    with pytest.raises(UsageError, match="are on 8 GPUs each, and no node of the cluster has as many"):
        cluster.RayWorkers(ray, device="cuda", processes=8)


@pytest.mark.usefixtures("memory")
def test_a_run_on_a_cluster_asks_for_its_share_of_a_gpu_and_a_cpu(tmp_path: Path) -> None:
    ray = Cluster([{"CPU": 8.0, "GPU": 1.0, "memory": 1e9}, {"CPU": 4.0, "memory": 1e9}])
    workers = cluster.RayWorkers(ray, device="cuda")
    for number in range(5):
        assert workers.has_room(RUN)
        workers.start(tmp_path / str(number), RUN, 1)
    assert ray.asked == [{"num_cpus": 1, "num_gpus": 0.2}] * 5
    assert not workers.has_room(RUN)
    assert (workers.count, workers.planned) == (12, 1)


@without_gpu
def test_without_a_gpu_auto_is_the_cpu_and_what_needs_one_is_refused() -> None:
    assert chosen_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"device 'cuda' cannot be used here .* Use: --device cpu"):
        chosen_device("cuda")
    with pytest.raises(UsageError, match="are on a GPU, and this machine has none"):
        free_gpus()


def test_the_device_is_that_of_every_run_and_survives_the_folder(new_sweep: NewSweep, tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    sweep.design = replace(sweep.design, device="cuda")
    sweep.write()
    design = Sweep.read(sweep.folder).design
    assert {config_of(cell, design).run.device for cell in design.grid("transformer")} == {"cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_two_runs_train_on_one_gpu_at_once(new_sweep: NewSweep, machine: Machine, tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    sweep.design = replace(sweep.design, device="cuda")
    cells = [replace(cell, rate=4e-3) for cell in sweep.design.grid("transformer")[:2]]
    folders = [make_folder(cell, sweep.design, sweep.place, machine) for cell in cells]
    workers, ended = LocalWorkers(2, free_gpus()), {}
    for folder in folders:
        assert workers.has_room(RUN)
        workers.start(folder, RUN)
    while len(ended) < len(folders):
        ended |= workers.wait(1.0)
    assert set(ended.values()) == {0}
    assert all(read_report(folder) for folder in folders)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu_has_the_loss_of_one_on_the_cpu_within_rounding(
    new_sweep: NewSweep, machine: Machine, tmp_path: Path
) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        sweep = new_sweep(tmp_path / device)
        sweep.design = replace(sweep.design, device=device)
        cell = replace(sweep.design.grid("transformer")[0], rate=4e-3)
        here = Here()
        here.start(make_folder(cell, sweep.design, sweep.place, machine), RUN, 1)
        assert set(here.wait(0).values()) == {0}
        losses.append(sweep.row(cell).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
