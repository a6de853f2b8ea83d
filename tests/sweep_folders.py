"""A finished sweep without training: its runs report losses of a formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nextword.data import Dataset
from nextword.plan import device
from nextword.plan.run_config import DataConfig
from nextword.scale.cells import Place, make_folder
from nextword.scale.design import Cell
from nextword.scale.planning import design_of
from nextword.scale.speed import Speed, Timed
from nextword.scale.sweep import Sweep
from nextword.spec import ModelKind
from nextword.train.planning import Machine
from nextword.train.run_dir import Measured, write_report

BITS = {"transformer": 1.0, "lstm": 1.08}  # of the formula's losses


def loss_of(kind: str, size: float, tokens: float) -> float:
    """A surface with its optimum at D/M about 20."""
    return BITS[kind] * (0.6 + 14 / size**0.3 + 34 / tokens**0.3)


def finished_sweep(folder: Path, data: Dataset, kinds: tuple[ModelKind, ...] = ("transformer",)) -> Sweep:
    """A sweep in `folder` whose runs are all finished but the hold-out, which is predicted and measured too."""
    from nextword.scale.design import SweepDesign

    base = SweepDesign(kinds, (), (), 0.0, data.vocabulary, 32, 1, 1, 10**9, data.bytes_per_token)
    design = replace(design_of(1e12, 4, base), seeds=2, half_rate=True)
    speed = Speed(tuple(Timed(kind, 1e5, 1e-5, 1e-3) for kind in kinds), workers=2, val_tokens=data.val.tokens)
    folder.mkdir(parents=True)
    sweep = Sweep(folder, design, Place(folder / "runs", data, DataConfig(), ("text",)), {"minutes": 30.0}, speed)
    sweep.write()
    machine = Machine(device("own=8GB,10GB/s,100GFLOP/s"))
    for kind in kinds:
        while left := [cell for cell in sweep.rate_cells(kind) if not sweep.row(cell).settled]:
            for cell in left:
                finish(sweep, cell, machine, 1 + 0.01 * abs(cell.rate / 4e-3 - 1))
        for cell in sweep.grid(kind):
            finish(sweep, cell, machine)
    for cell in sweep.repeats():
        finish(sweep, cell, machine, 1 + 0.001 * cell.seed)
    sweep.predict()
    assert sweep.hold_out is not None
    finish(sweep, replace(sweep.hold_out), machine)
    return sweep


def finish(sweep: Sweep, cell: Cell, machine: Machine, factor: float = 1.0) -> None:
    """Let a cell's run be finished, with the formula's loss times `factor`."""
    folder = make_folder(cell, sweep.design, sweep.place, machine)
    bits = factor * loss_of(cell.kind, cell.size, cell.tokens)
    measured = Measured(
        memory=1e8, seconds=10.0, tokens=cell.tokens, tokens_per_second=1.0, share_of_peak=0.5, data_share=0.0,
        train_loss=bits, nats_per_token=bits, bits_per_byte=bits, threads=1, steps=cell.steps,
    )  # fmt: skip
    write_report(folder, None, measured)
