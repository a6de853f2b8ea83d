"""What a finished sweep is said to show, against the formula its losses come from."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

import vega_lite
from cli_run import run
from nextword.data import Dataset
from nextword.plan.isoflops import budgets, isoflops
from nextword.plan.search import lowest, root
from nextword.scale.law import KindLaw
from nextword.scale.page import figures, report_page
from nextword.scale.report import assumptions, findings, sentences
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
    transformer, surface, lstm, _, kinds, scans = drawn = list(figures(sweep, found))
    for figure in drawn:
        vega_lite.drawn(figure)
    held = found.hold_out
    assert held is not None
    ring, dot = vega_lite.marks(transformer["concat"][2], "point")[-2:]
    assert vega_lite.column(ring, "value") == [held.predicted.value]
    assert vega_lite.column(dot, "value") == [held.row.loss]
    assert vega_lite.column(dot, "flops") == [held.row.cell.flops]
    measured = vega_lite.marks(scans, "point")[0]
    rows = [row for row in sweep.rows() if row.cell.role == "rate"]
    assert sorted(vega_lite.column(measured, "loss")) == sorted(row.loss for row in rows)
    assert vega_lite.texts(kinds, "lines") == ["transformer", "lstm"]
    assert lstm["title"]["text"].startswith("lstm: ")
    dots = vega_lite.marks(surface, "point")[-1]
    cells = [row for row in sweep.rows() if row.cell.role == "grid" and row.cell.kind == "transformer"]
    assert sorted(vega_lite.column(dots, "loss")) == sorted(row.loss for row in cells)
    errors = zip(vega_lite.column(dots, "error"), vega_lite.column(dots, "fitted"), strict=True)
    assert all(abs(error) < 0.001 for error, fitted in errors if fitted)  # the losses are of a law of this form


def test_the_closing_sentence_has_parameters_tokens_and_the_flat_region(sweep: Sweep) -> None:
    found = findings(sweep)
    law = found.laws["transformer"]
    said = sentences(sweep, found, 1e15)[0]
    size, loss = best("transformer", 1e15)
    form = r"parameters \(M (\S+); (\S+) to (\S+) lie within 0.5%\) on (\S+ \S) tokens: (\S+) ± (\S+)"
    shown = re.search(form, said)
    assert shown is not None, said
    assert parse(shown[1]) == pytest.approx(size, rel=0.3)
    assert parse(shown[4].replace(" ", "")) == pytest.approx(1e15 / 6 / parse(shown[1]), rel=0.02)
    assert abs(float(shown[5]) - loss) < float(shown[6])
    flat = parse(shown[3]) / parse(shown[1])
    assert parse(shown[1]) / parse(shown[2]) == pytest.approx(flat, rel=0.02)
    top, least = best("transformer", law.top)
    rises = [loss_of("transformer", size, law.top / 6 / size) / least - 1 for size in (top * flat, top / flat)]
    assert sum(rises) / 2 == pytest.approx(0.005, rel=0.3)


def test_three_sizes_a_budget_give_a_loss_without_an_interval(sweep: Sweep) -> None:
    runs = findings(sweep).laws["transformer"].runs
    near = [sorted(group, key=lambda row: runs.losses[row])[:3] for group in budgets(runs)]
    three = runs.take(sorted(row for group in near for row in group))
    law = KindLaw("transformer", three, isoflops(three))
    assert not law.problem
    found = replace(findings(sweep), laws={"transformer": law}, factors={})
    said = " ".join(sentences(sweep, found) + assumptions(sweep, found))
    assert re.search(r"tokens: \d\.\d{3} \(no interval\) bits a byte", said)
    assert "no interval, since no budget has a run besides the three" in said
    assert "nan" not in said


def test_a_hold_out_predicted_without_an_interval_is_neither_inside_nor_outside(sweep: Sweep, tmp_path: Path) -> None:
    shutil.copytree(sweep.folder, tmp_path / "sweep")
    copied = Sweep.read(tmp_path / "sweep")
    prediction = json.loads((copied.folder / "prediction.json").read_text())
    (copied.folder / "prediction.json").write_text(json.dumps(prediction | {"interval": [None, None]}))
    said = " ".join(sentences(copied, findings(copied)))
    assert re.search(r"was predicted \S+ \(no interval\) and measured \S+ bits a byte: \S+%", said)
    assert "side the interval" not in said


def parse(count: str) -> float:
    return float(count[:-1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[count[-1]]


def test_seeds_give_the_noise_and_half_the_rate_checks_the_rule(sweep: Sweep) -> None:
    rows = {role: [row for row in sweep.rows() if row.cell.role == role] for role in ("seed", "half-rate")}
    assert [row.cell.seed for row in rows["seed"]] == [1, 2, 1, 2]
    assert {row.cell.budget for row in rows["seed"]} == set(sweep.design.budgets[:2])
    law = findings(sweep).laws["transformer"]
    assert law.seeds == pytest.approx(0.001, rel=0.01)  # of losses that are 0, 1 and 2 thousandths higher
    assert law.scaling.frontier is not None
    assert law.scaling.frontier.noise >= law.seeds
    (half,) = rows["half-rate"]
    whole = next(cell for cell in sweep.grid("transformer")
                 if (cell.size, cell.budget) == (half.cell.size, half.cell.budget))  # fmt: skip
    assert half.cell.rate == whole.rate / 2
    assert half.cell.budget == max(sweep.design.budgets)
    said = " ".join(assumptions(sweep, findings(sweep)))
    assert f"{law.seeds:.2%} over seeds" in said
    assert "(+0.00%): the rates hold" in said


def test_results_are_shown_where_nothing_can_be_written(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Derived files are written where they changed; the folder of another user, or of a full disk, is shown too."""
    copied = tmp_path / "sweep"
    shutil.copytree(sweep.folder, copied)
    code, out, _ = run(capsys, "scale", "show", str(copied))
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    assert run(capsys, "scale", "show", str(copied))[:2] == (code, out) == (0, out)
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == before
    (copied / "table.csv").unlink()
    (copied / "table.csv").mkdir()  # what cannot be replaced, also by root
    code, again, err = run(capsys, "scale", "show", str(copied))
    assert (code, again) == (0, out)
    assert "table.csv was not written" in err


def test_the_page_has_sentences_figures_and_every_run_and_loads_nothing(sweep: Sweep) -> None:
    found = findings(sweep)
    page = report_page(sweep, found)
    for sentence in sentences(sweep, found):
        assert escape(sentence) in page
    assert page.count("<svg") == 6
    assert page.count("<tr>") == 1 + len(sweep.rows())
    assert not re.search(r'(src|href)="?http|<script', page)


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "give the text to train on"),
    (("books",), "--minutes or --flops is missing"),
    (("books", "--minutes", "3", "--flops", "1e13"), "--minutes and --flops are separate budgets; give one"),
    (("books", "--minutes", "3", "--cluster", "head"), "--cluster 'head': give auto, on a machine of the cluster, or"),
    (("--out", "{sweep}", "--device", "cuda"), "holds a sweep of runs on cpu, not cuda. Choose another --out"),
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


@pytest.mark.parametrize(("budget", "said"), [
    (("--flops", "1e13"), "too little text: "),
    (("--flops", "1e9"), "1.00 GFLOPs buys fewer than the 6 runs that a law needs"),
    (("--minutes", "0.1"), "buys fewer than the 6 runs that a law needs"),
])  # fmt: skip
def test_what_is_too_little_for_a_law_says_how_much_it_takes_and_leaves_nothing(
    budget: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("The ship went out before the wind. " * 2000)
    code, out, err = run(capsys, "scale", "story.txt", *budget)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert said in last
    assert "Give about" in last
    assert not (tmp_path / "sweeps").exists()
