"""A sweep from its learning rates to the hold-out run, interrupted, continued and widened."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from in_process import Here
from safetensors.numpy import load_file

from nextword.base import UsageError
from nextword.data import Dataset
from nextword.plan import RunConfig, Runs, read_runs
from nextword.plan.isoflops import isoflops
from nextword.scale.cells import config_of
from nextword.scale.law import KindLaw
from nextword.scale.report import findings, sentences, write_results
from nextword.scale.sweep import PREDICTION, Sweep, check_request
from nextword.train.metrics import append_line
from nextword.train.planning import Machine, plan_run
from nextword.train.run import train_run
from nextword.train.run_dir import RunRecord, read_report

NewSweep = Callable[[Path], Sweep]


def made_up_law() -> KindLaw:
    """The law of runs whose losses are those of a formula."""
    sizes, budgets = [4e3, 8e3, 16e3, 32e3, 64e3], [1e10, 2e10, 4e10]
    rows = [(m, c / (6 * m)) for c in budgets for m in sizes]
    losses = tuple(0.6 + 30 / m**0.4 + 40 / d**0.4 for m, d in rows)
    runs = Runs(*(tuple(column) for column in zip(*rows, strict=True)), losses, unit="bits/byte",
                counts={"N": tuple(m for m, _ in rows)})  # fmt: skip
    return KindLaw("transformer", runs, isoflops(runs))


LAW = made_up_law()


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    """Two learning rates, and one law whatever was measured: no test depends on the losses of tiny models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextword.scale.sweep.scan", lambda *cell: (4e-3, 8e-3))
        patch.setattr("nextword.scale.sweep.more", lambda losses: None)
        patch.setattr("nextword.scale.law.fit_kind", lambda kind, rows: LAW)
        yield


@dataclass
class Whole:
    """A sweep that ran undisturbed."""

    sweep: Sweep
    started: list[str]  # names of runs, in order
    predicted: list[bool]  # whether the prediction was on disk when each started


@pytest.fixture(scope="module")
def whole(new_sweep: NewSweep, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Nothing may be written there."""
    sweep = new_sweep(tmp_path_factory.mktemp("whole") / "sweep")
    predicted: list[bool] = []
    here = Here(before=lambda folder: predicted.append((sweep.folder / PREDICTION).exists()))
    sweep.run(here, machine)
    return Whole(sweep, [folder.name for folder in here.started], predicted)


def copy_of(whole: Whole, folder: Path) -> Sweep:
    shutil.copytree(whole.sweep.folder, folder)
    return Sweep.read(folder)


def losses(sweep: Sweep) -> dict[str, float]:
    return {row.cell.name: row.loss for row in sweep.rows()}


def test_rates_come_first_then_budgets_and_last_the_run_that_was_predicted(whole: Whole) -> None:
    rows = whole.sweep.rows()
    assert {row.status for row in rows} == {"done"}
    assert whole.started == [row.cell.name for row in rows]
    assert [row.cell.role for row in rows] == ["rate"] * 4 + ["grid"] * 4 + ["hold-out"]
    assert [row.cell.budget for row in rows[4:]] == [4e9, 4e9, 8e9, 8e9, 1.6e10]
    assert whole.predicted == [False] * 8 + [True]  # on disk before the hold-out run starts
    rule = whole.sweep.rate_rule("transformer")
    assert rule is not None
    assert all(row.cell.rate == rule.at(row.cell.size) for row in rows[4:])
    prediction = whole.sweep.prediction
    assert prediction is not None
    assert prediction["flops"] == rows[-1].cell.flops >= 1.6e10
    assert prediction["bits_per_byte"] == pytest.approx(LAW.at(rows[-1].cell.flops).loss)


def test_the_table_is_what_the_runs_reported(whole: Whole, tmp_path: Path) -> None:
    sweep = copy_of(whole, tmp_path / "sweep")
    with (sweep.folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    for row, line in zip(sweep.rows(), table, strict=True):
        report = read_report(sweep.place.runs / row.cell.name)
        assert report is not None
        assert float(line["bits_per_byte"]) == report.bits_per_byte == row.loss
        assert int(line["tokens"]) == report.tokens == row.cell.tokens
        assert float(line["flops"]) == pytest.approx(6 * float(line["M"]) * report.tokens)
        assert int(line["parameters"]) == sum(weights_in(sweep.place.runs / row.cell.name))
    runs = read_runs(sweep.folder / "table.csv", subset="grid")
    assert runs.losses == tuple(row.loss for row in sweep.rows() if row.cell.role == "grid")
    assert runs.unit == "bits/byte"


def weights_in(folder: Path) -> list[int]:
    return [math.prod(array.shape) for array in load_file(folder / "model.safetensors").values()]


def test_a_cell_that_began_with_another_ones_trunk_is_the_straight_run(
    whole: Whole, scale_data: Dataset, tmp_path: Path
) -> None:
    row = next(row for row in whole.sweep.rows() if row.cell.role == "grid" and row.cell.budget == 8e9)
    config = RunRecord.read(whole.sweep.place.runs / row.cell.name).config
    straight = train_run(config, scale_data, tmp_path / "straight").measured
    assert straight is not None
    assert straight.bits_per_byte == row.loss


def test_the_closing_lines_have_the_prediction_beside_the_measurement(whole: Whole) -> None:
    found = findings(whole.sweep)
    held = found.hold_out
    assert held is not None
    assert held.error == held.predicted.value / held.row.loss - 1
    said = " ".join(sentences(whole.sweep, found))
    assert f"was predicted {held.predicted.value:.3f} ± " in said
    assert f"and measured {held.row.loss:.3f} bits a byte: {held.error:+.1%}" in said
    assert "projected, no such run was made" in said


def test_the_best_configuration_is_one_that_can_be_trained(
    whole: Whole, scale_data: Dataset, machine: Machine, tmp_path: Path
) -> None:
    sweep = copy_of(whole, tmp_path / "sweep")
    write_results(sweep)
    config = RunConfig.read(sweep.folder / "best.toml")
    plan = plan_run(config, scale_data, machine)
    cell = sweep.hold_out
    assert cell is not None
    assert plan.config.spec == cell.spec
    assert plan.config.train.steps == pytest.approx(cell.steps, abs=1)
    assert plan.config.train.learning_rate == cell.rate


def test_the_same_again_does_nothing_and_another_budget_needs_its_own_cells_only(
    whole: Whole, machine: Machine, tmp_path: Path
) -> None:
    sweep, here = copy_of(whole, tmp_path / "sweep"), Here()
    sweep.run(here, machine)
    assert here.started == []
    sweep.design = sweep.design.widened(budgets=(1e10,))
    sweep.run(here, machine)
    assert {folder.name.split("-")[-1] for folder in here.started} == {"1e+10"}
    assert losses(sweep).items() > losses(whole.sweep).items()


def test_a_sweep_stopped_again_and_again_ends_with_the_same_table(
    whole: Whole, new_sweep: NewSweep, machine: Machine, tmp_path: Path
) -> None:
    sweep, turns = new_sweep(tmp_path / "sweep"), iter(range(1000))

    def interrupt(folder: Path) -> None:
        if next(turns) % 3 == 2:
            raise KeyboardInterrupt

    for _ in range(20):
        try:
            sweep.run(Here(before=interrupt), machine)
            break
        except KeyboardInterrupt:
            write_results(sweep)  # what there is can be fitted
    assert losses(sweep) == losses(whole.sweep)


def test_a_run_that_diverged_is_marked_and_not_tried_again(whole: Whole, machine: Machine, tmp_path: Path) -> None:
    sweep, here = copy_of(whole, tmp_path / "sweep"), Here()
    cell = next(row.cell for row in whole.sweep.rows() if row.cell.role == "grid" and row.cell.budget == 8e9)
    folder = sweep.place.runs / cell.name
    (folder / "report.json").unlink()
    append_line(folder / "metrics.jsonl", {"step": 3, "loss": "nan", "action": "stop", "reason": "the loss is nan"})
    sweep.run(here, machine)
    assert here.started == []
    row = sweep.row(cell)
    assert (row.status, row.reason) == ("diverged", "the loss is nan")
    assert math.isnan(row.loss)


def test_a_run_that_fails_leaves_the_others_to_go_on(new_sweep: NewSweep, machine: Machine, tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    here = Here(broken=lambda folder: int("rate" not in folder.name))
    sweep.run(here, machine)
    assert [folder.name.count("rate") for folder in here.started] == [1] * 4 + [0] * 5  # each once, the hold-out too
    assert {row.status for row in sweep.rows()[4:]} == {"stopped"}


def test_a_run_that_is_killed_is_tried_once_more(new_sweep: NewSweep, machine: Machine, tmp_path: Path) -> None:
    sweep, told = new_sweep(tmp_path / "sweep"), []
    first = sweep.rate_cells("transformer")[0].name
    here = Here(broken=lambda folder: -9 if folder.name == first else int("rate" not in folder.name))
    sweep.run(here, machine, log=told.append)
    assert [folder.name for folder in here.started].count(first) == 2
    assert told == [f"{first} was killed by signal 9"] * 2
    assert len(here.started) == 1 + 4  # the other rates, and no grid without this one


def test_another_sweep_is_not_continued(new_sweep: NewSweep, tmp_path: Path) -> None:
    sweep = new_sweep(tmp_path / "sweep")
    check_request(sweep.folder, sweep.request, {"minutes": 1.0})
    with pytest.raises(UsageError, match=r"holds another sweep: minutes: 1\.0 -> 2\.0\. Choose another --out"):
        check_request(sweep.folder, sweep.request, {"minutes": 2.0})
    with pytest.raises(UsageError, match="holds no sweep"):
        Sweep.read(tmp_path)
    with sweep.locked(), pytest.raises(UsageError, match="another process is running this sweep"), sweep.locked():
        pass


def test_runs_of_a_sweep_differ_only_in_size_length_and_rate(whole: Whole) -> None:
    design = whole.sweep.design
    plain = []
    for cell in (*design.grid("transformer"), *design.calibration("transformer")):
        config = config_of(replace(cell, rate=1e-3), design).to_dict()
        for section, name in (("train", "steps"), ("run", "checkpoint_every"), ("model", "spec")):
            del config[section][name]
        plain.append(config)
    assert all(config == plain[0] for config in plain)
