"""What a finished sweep is said to show, against the formula its losses come from."""

from __future__ import annotations

import json
import math
import re
from html import escape
from pathlib import Path

import pytest

import vega_lite
from cli_run import run
from nextword.data import Dataset
from nextword.plan.search import lowest, root
from nextword.scale.page import figures, report_page
from nextword.scale.report import findings, sentences
from nextword.scale.sweep import Sweep
from sweep_folders import finished_sweep, loss_of


@pytest.fixture(scope="module")
def sweep(scale_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return finished_sweep(tmp_path_factory.mktemp("finished") / "sweep", scale_data, ("transformer", "lstm"))


def best(kind: str, flops: float) -> tuple[float, float]:
    """The best size for a budget, and its loss."""

    def loss(log_size: float) -> float:
        return loss_of(kind, math.exp(log_size), flops / (6 * math.exp(log_size)))

    size = lowest(loss, math.log(1e3), math.log(1e9))
    return math.exp(size), loss(size)


def test_the_law_predicts_the_formula_at_four_and_at_forty_times_the_compute(sweep: Sweep) -> None:
    found = findings(sweep)
    law = found.laws["transformer"]
    assert not law.problem
    for times in (4, 40):
        forecast = law.at(times * law.top)
        size, loss = best("transformer", forecast.flops)
        assert forecast.loss == pytest.approx(loss, rel=0.02)
        assert forecast.size.value == pytest.approx(size, rel=0.25)
        assert forecast.interval.low < loss < forecast.interval.high
    assert found.hold_out is not None
    assert abs(found.hold_out.error) < 0.015
    assert found.hold_out.inside


def test_the_kind_with_the_higher_losses_needs_more_compute(sweep: Sweep) -> None:
    found = findings(sweep)
    assert found.base == "transformer"

    def compute(kind: str) -> float:
        return math.exp(root(lambda log: best(kind, math.exp(log))[1] - found.loss, math.log(1e9), math.log(1e17)))

    factor = found.factors["lstm"].value
    assert factor == pytest.approx(compute("lstm") / compute("transformer"), rel=0.01)
    assert f"the lstm needs {factor:.2g} times the compute of the transformer" in " ".join(sentences(sweep, found))


def test_show_prints_and_writes_what_was_found(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "scale", "show", str(sweep.folder), "--config", str(tmp_path / "best.toml"))
    assert code == 0
    assert "inside the interval" in out
    assert "learning_rate" in (tmp_path / "best.toml").read_text()
    code, out, _ = run(capsys, "scale", "show", str(sweep.folder), "--json", "--at", "1e15")
    data = json.loads(out)
    assert code == 0
    assert data["projections"]["transformer"]["flops"] == 1e15
    assert data["hold_out"]["inside"] is True
    assert {row["status"] for row in data["runs"]} == {"done"}


def test_the_figures_show_the_runs_the_prediction_and_the_measurement(sweep: Sweep) -> None:
    found = findings(sweep)
    transformer, lstm, kinds, scans = figures(sweep, found)
    for figure in (transformer, lstm, kinds, scans):
        vega_lite.drawn(figure)
    held = found.hold_out
    assert held is not None
    ring, dot = vega_lite.marks(transformer["hconcat"][2], "point")[-2:]
    assert vega_lite.column(ring, "value") == [held.predicted.value]
    assert vega_lite.column(dot, "value") == [held.row.loss]
    assert vega_lite.column(dot, "flops") == [held.row.cell.flops]
    measured = vega_lite.marks(scans, "point")[0]
    rows = [row for row in sweep.rows() if row.cell.role == "rate"]
    assert sorted(vega_lite.column(measured, "loss")) == sorted(row.loss for row in rows)
    assert vega_lite.texts(kinds, "lines") == ["transformer", "lstm"]


def test_the_page_has_sentences_figures_and_every_run_and_loads_nothing(sweep: Sweep) -> None:
    found = findings(sweep)
    page = report_page(sweep, found)
    for sentence in sentences(sweep, found):
        assert escape(sentence) in page
    assert page.count("<svg") == 4
    assert page.count("<tr>") == 1 + len(sweep.rows())
    assert not re.search(r'(src|href)="?http|<script', page)


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "give the text to train on"),
    (("books",), "--minutes or --flops is missing"),
    (("books", "--minutes", "3", "--flops", "1e13"), "--minutes and --flops are separate budgets; give one"),
    (("books", "--minutes", "3", "--arch", "mamba"), "--arch 'mamba' is not known. Known: transformer"),
    (("--out", "{tmp}/new", "--add-budget", "1e13"), "holds no sweep that could be widened"),
    (("--out", "{sweep}", "--minutes", "20"), "holds another sweep: minutes: 30.0 -> 20.0. Choose another --out"),
    (("{text}", "--minutes", "20", "--sizes", "50k"), "--sizes has 1: a budget's best size lies between others"),
    (("show", "{tmp}"), "holds no sweep: it has no scale.json. Start one: nextword scale TEXT --minutes 30"),
])  # fmt: skip
def test_bad_input_is_one_line_that_names_the_fix(
    arguments: tuple[str, ...], said: str, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"tmp": tmp_path, "sweep": sweep.folder, "text": tmp_path}
    code, out, err = run(capsys, "scale", *(part.format(**places) for part in arguments))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sweeps").exists()
