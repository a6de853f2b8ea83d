"""Runs in processes of their own: stopped with a checkpoint, continued, and as many as there is room for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nextword.scale.cells import make_folder
from nextword.scale.local import LocalWorkers
from nextword.scale.sweep import Sweep
from nextword.scale.table import row_of
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
