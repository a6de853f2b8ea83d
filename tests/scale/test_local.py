"""Runs in processes of their own: stopped with a checkpoint, continued, and as many as there is room for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nextword.scale.cells import make_folder
from nextword.scale.local import LocalWorkers
from nextword.scale.sweep import Sweep
from nextword.scale.table import LOG, row_of
from nextword.train.checkpoint import folder_name
from nextword.train.metrics import progress_of
from nextword.train.planning import Machine


def test_a_stopped_process_leaves_a_checkpoint_to_go_on_from(
    new_sweep: Callable[[Path], Sweep], machine: Machine, tmp_path: Path
) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    cell = replace(sweep.design.grid("transformer")[0], rate=4e-3, steps=4000)
    folder = make_folder(cell, sweep.design, sweep.place, machine)
    workers = LocalWorkers(1)
    workers.start(folder, 1e8)
    assert workers.running == {folder}
    assert not workers.has_room(1e6)
    workers.count, workers.memory = 2, dict.fromkeys(workers.memory, 1.5e8)
    assert workers.has_room(4e7)
    assert not workers.has_room(6e7)
    while progress_of(folder)[0] < 2:
        assert workers.wait(0.05) == {}
    assert row_of(cell, sweep.place.runs).status == "running"
    workers.close()
    done, _ = progress_of(folder)
    assert done < cell.steps
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    assert row_of(cell, sweep.place.runs).status == "stopped"


def test_runs_of_two_processes_have_the_losses_of_one_and_grow_from_a_trunk(
    new_sweep: Callable[[Path], Sweep], machine: Machine, tmp_path: Path
) -> None:
    losses = []
    for processes in (1, 2):
        sweep = new_sweep(tmp_path / str(processes))
        sweep.design = replace(sweep.design, processes=processes)
        smallest = min(cell.size for cell in sweep.design.grid("transformer"))
        cells = [replace(cell, rate=4e-3) for cell in sweep.design.grid("transformer") if cell.size == smallest]
        workers, trunks = LocalWorkers(1, processes=processes), cells[:0]
        for cell in cells:
            folder = make_folder(cell, sweep.design, sweep.place, machine, trunks)
            workers.start(folder, 1e8)
            ended: dict[Path, int] = {}
            while not ended:
                ended = workers.wait(1.0)
            assert ended == {folder: 0}, (folder / LOG).read_text()
            trunks = [*trunks, cell]
        assert (folder / "checkpoints" / folder_name(cells[0].stable_steps)).exists()
        losses.append([sweep.row(cell).loss for cell in cells])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_stopped_run_of_two_processes_leaves_a_checkpoint(
    new_sweep: Callable[[Path], Sweep], machine: Machine, tmp_path: Path
) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    sweep.design = replace(sweep.design, processes=2)
    cell = replace(sweep.design.grid("transformer")[0], rate=4e-3, steps=100_000)
    folder = make_folder(cell, sweep.design, sweep.place, machine)
    workers = LocalWorkers(1, processes=2)
    workers.start(folder, 1e8)
    while progress_of(folder)[0] < 2:
        assert workers.wait(0.05) == {}
    workers.close()
    done, _ = progress_of(folder)
    assert (folder / "checkpoints" / folder_name(done)).exists()
    assert row_of(cell, sweep.place.runs).status == "stopped"


def test_a_run_that_cannot_start_says_why(new_sweep: Callable[[Path], Sweep], machine: Machine, tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    cell = replace(sweep.design.grid("transformer")[0], rate=4e-3)
    folder = make_folder(cell, sweep.design, sweep.place, machine)
    (folder / "tokenizer.json").unlink()
    (folder / "config.toml").write_text("[train]\nsteps = 'many'\n")
    workers = LocalWorkers(2)
    workers.start(folder, 1e8)
    ended: dict[Path, int] = {}
    end = time.monotonic() + 200
    while not ended and time.monotonic() < end:
        ended = workers.wait(1.0)
    assert ended == {folder: 1}
    row = row_of(cell, sweep.place.runs)
    assert row.status == "failed"
    assert "steps" in row.reason
