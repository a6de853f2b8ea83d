"""A sweep on a cluster: whatever dies, its table is that of one machine, times aside."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drive_sweep import RATES
from in_process import Here

from cli_run import run
from nextword.base import RunError, UsageError
from nextword.base.cluster import attached
from nextword.scale.cluster import RayWorkers, check_cluster
from nextword.scale.sweep import PREDICTION, TABLE, Sweep, write_json
from nextword.train.metrics import progress_of
from nextword.train.planning import Machine
from ray_machines import Machines

NewSweep = Callable[[Path], Sweep]
RUNS = 5
PATIENCE = 300.0  # seconds, of a busy machine
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.fixture(autouse=True)
def _one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextword.scale.sweep.scan", lambda *cell: RATES)
    monkeypatch.setattr("nextword.scale.sweep.more", lambda losses: None)


@pytest.fixture
def longer(new_sweep: NewSweep) -> NewSweep:
    """Makes a sweep of five runs, with a hold-out run that is predicted already, long enough to be interrupted."""

    def make(folder: Path) -> Sweep:
        sweep = new_sweep(folder)
        sweep.design = replace(sweep.design, budgets=(2e10,), scan_budget=1e10, hold_out=3e10, unique_tokens=10**6)
        sweep.write()
        write_json(folder / PREDICTION, {"kind": "transformer", "size_sought": 12.5e3, "learning_rate": 4e-3})
        return sweep

    return make


def table(sweep: Sweep) -> list[dict[str, str]]:
    """The finished table without times."""
    with (sweep.folder / TABLE).open(encoding="utf-8") as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def reports(sweep: Sweep) -> set[Path]:
    return set(sweep.place.runs.glob("*/report.json"))


def under_way(sweep: Sweep) -> bool:
    """Whether a run is in the middle."""
    return any(progress_of(path.parent)[0] > 20 and not (path.parent / "report.json").exists()
               for path in sweep.place.runs.glob("*/metrics.jsonl"))  # fmt: skip


def workers_of_ray() -> list[int]:
    """The processes that train a run just now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_train"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.timeout(900)  # of a busy machine
def test_the_table_is_that_of_one_machine_whatever_dies(
    longer: NewSweep, machine: Machine, machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = longer(tmp_path / "here"), longer(tmp_path / "there")
    here.run(Here(), machine)
    a_command_that_is_killed_holds_the_folder_until_then(there, machine, machines)
    with attached(machines.address) as ray:
        check_cluster(ray, there)
        a_stop_leaves_a_checkpoint_of_each_run(there, machine, ray)
        a_worker_and_a_machine_are_lost_on_the_way(there, machine, machines, ray)
        what_no_machine_has_is_refused_at_once(there, ray)
    assert table(there) == table(here)
    assert len(table(there)) == RUNS
    line = ("scale", "--out", str(there.folder), "--cluster", machines.address, "--dry-run", "--json")
    code, out, err = run(capsys, *line)
    assert code == 0, err
    assert json.loads(out)["design"]["budgets"] == [2e10]


def a_command_that_is_killed_holds_the_folder_until_then(sweep: Sweep, machine: Machine, machines: Machines) -> None:
    script = Path(__file__).with_name("drive_sweep.py")
    with subprocess.Popen([sys.executable, script, sweep.folder, machines.address]) as command:
        until(lambda: reports(sweep) and under_way(sweep))
        with pytest.raises(UsageError, match="another process is running this sweep"):
            sweep.run(Here(), machine)
        command.kill()
    assert len(reports(sweep)) < RUNS


def a_stop_leaves_a_checkpoint_of_each_run(sweep: Sweep, machine: Machine, ray: Any) -> None:
    stopped = []

    def stop() -> None:
        stopped[:] = [row for row in sweep.rows() if row.status == "running" and row.share > 0]
        if stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(RayWorkers(ray), machine, stop)
    for row in stopped:
        folder = sweep.place.runs / row.cell.name
        done = progress_of(folder)[0]
        assert (folder / "checkpoints" / f"step-{done:08d}").exists() or (folder / "report.json").exists()
    assert not workers_of_ray()


def a_worker_and_a_machine_are_lost_on_the_way(sweep: Sweep, machine: Machine, machines: Machines, ray: Any) -> None:
    lost = []

    def lose() -> None:
        until(lambda: under_way(sweep) and workers_of_ray())
        lost.append(workers_of_ray()[0])
        os.kill(lost[0], signal.SIGKILL)
        before = len(reports(sweep))
        until(lambda: len(reports(sweep)) > before)
        machines.lose_second()

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    sweep.run(RayWorkers(ray), machine)
    losing.join(PATIENCE)
    assert lost
    assert not losing.is_alive()


def what_no_machine_has_is_refused_at_once(sweep: Sweep, ray: Any) -> None:
    with pytest.raises(UsageError, match="no node of the cluster has one"):
        RayWorkers(ray, device="cuda")
    workers, folder = RayWorkers(ray), next(sweep.place.runs.iterdir())
    with pytest.raises(RunError, match="runs on 3 threads, and no node of the cluster offers more than 1 CPUs"):
        workers.start(folder, 1e6, 3)
    with pytest.raises(RunError, match=r"takes 1\.00 PB, and no node of the cluster offers more than"):
        workers.start(folder, 1e15, 1)
