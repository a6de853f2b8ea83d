"""A sweep of minutes ends on time, on a machine that is faster or slower than what was timed before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from simulated import Simulated

from nextword.data import Dataset
from nextword.plan.run_config import DataConfig
from nextword.scale.cells import Place
from nextword.scale.create import within
from nextword.scale.deadline import CLOSING, Deadline
from nextword.scale.design import SweepDesign
from nextword.scale.speed import Speed, Timed
from nextword.scale.sweep import Sweep
from nextword.train.planning import Machine

MINUTES = 30
SPEED = Speed((Timed("transformer", 2e4, 4e-6, 2e-3), Timed("transformer", 2e6, 2.4e-4, 1e-2)), workers=2,
              together=1.8, val_tokens=200_000)  # fmt: skip

NewSweep = Callable[..., Sweep]


@pytest.fixture
def timed_sweep(scale_data: Dataset, tmp_path: Path) -> NewSweep:
    """A sweep of half an hour, of which nothing has run."""

    def make(deadline: Deadline) -> Sweep:
        base = SweepDesign(("transformer",), (), (), 0.0, scale_data.vocabulary, 128, 1, 1, 10**9,
                           scale_data.bytes_per_token)  # fmt: skip
        design = within(deadline, SPEED, base, ())
        folder = tmp_path / "sweep"
        folder.mkdir()
        place = Place(folder / "runs", scale_data, DataConfig(), ("text",))
        return Sweep(folder, design, place, {"minutes": MINUTES}, SPEED, deadline)

    return make


@pytest.mark.parametrize(
    ("pace", "start", "together"),
    [(0.75, 3.0, 1.8), (1.0, 1.0, 1.8), (1.0, 6.0, 1.8), (1.3, 3.0, 1.8), (1.8, 3.0, 1.8), (1.0, 3.0, 1.4)],
)
def test_a_sweep_ends_on_time_however_fast_its_runs_are(
    pace: float, start: float, together: float, timed_sweep: NewSweep, machine: Machine
) -> None:
    told: list[str] = []
    deadline = Deadline(60 * MINUTES, clock=lambda: 0.0)
    sweep = timed_sweep(deadline)
    workers = Simulated(sweep, replace(SPEED, pace=pace, start=start, together=together))
    sweep.deadline = Deadline(60 * MINUTES, clock=workers.clock)
    sweep.run(workers, machine, log=told.append)
    assert sweep.hold_out is not None
    assert sweep.row(sweep.hold_out).status == "done"
    assert workers.now + CLOSING == pytest.approx(60 * MINUTES, rel=0.05)
    assert 4 <= sweep.hold_out.flops / max(sweep.design.budgets) < 10.1
    assert len(sweep.grid("transformer")) >= 12
    for name in sweep.design.left_out:  # nothing is left out silently
        assert any(name in line for line in told)
        assert not (sweep.place.runs / name).exists()
