"""Figures of plans: valid Vega-Lite, and every number the plan's own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

import vega_lite
from nextword import plan
from nextword.plan.laws import law, optimum
from nextword.plan.plots import law_figure, memory_figure, remedies_figure, surface_figure

SPEC = plan.shape_for(1e9)
RUNS = Path(__file__).parents[1] / "oracles" / "epoch_chinchilla.csv"


def _bars(figure: plan.Figure) -> dict[int, dict[str, float]]:
    """Bytes by part of each bar."""
    rows = vega_lite.marks(figure, "bar")[0]["data"]["values"]
    bars: dict[int, dict[str, float]] = {}
    for row in rows:
        bars.setdefault(row["bar"], {})[row["part"]] = 1e9 * row["gb"]
    return bars


@pytest.mark.parametrize("use", [plan.Training(batch=8), plan.Training(lora=8, base="nf4"), plan.Serving(8, 4096)])
def test_memorys_bar_has_its_parts_and_devices_their_lines(use):
    memory = plan.memory(SPEC, use)
    devices = [plan.device(name) for name in ("rtx4090", "rtx3090", "h100", "a100")]
    figure = memory_figure(memory, devices, "one billion")
    vega_lite.drawn(figure)
    (bar,) = _bars(figure).values()
    assert bar == pytest.approx({part.name: memory.part(part.name) for part in memory.parts})
    assert sum(bar.values()) == pytest.approx(memory.total)
    lines = {row["gb"]: row["device"] for view in vega_lite.marks(figure, "rule") for row in view["data"]["values"]}
    assert set(lines) == {device.memory / 1e9 for device in devices}
    for device in devices:
        assert device.name in lines[device.memory / 1e9]


def test_names_of_devices_do_not_run_into_each_other_nor_out_of_the_figure():
    devices = list(plan.devices().values())
    figure = memory_figure(plan.memory(SPEC, plan.Serving(1, 2048)), devices, "all")
    boxes = []
    for view in vega_lite.marks(figure, "text"):
        (row,) = view["data"]["values"]
        scale = view["encoding"]["x"]["scale"]["domain"][1]
        left = row["gb"] / scale * figure["width"]
        boxes.append((left, left + 5.2 * len(row["device"]), view["encoding"]["y"]["value"]))
    assert all(right <= figure["width"] + 24 for _, right, _ in boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] != other[2] or one[1] < other[0] or other[1] < one[0]


def test_remedies_have_a_bar_each_below_the_run_as_asked():
    found = plan.diagnose(SPEC, plan.Training(batch=32, context=2048), plan.device("rtx4090"))
    figure = remedies_figure(found, "one billion")
    vega_lite.drawn(figure)
    shown = found.remedies[:6]
    assert len(shown) > 1
    totals = [sum(bar.values()) for bar in _bars(figure).values()]
    assert totals == pytest.approx([found.memory.total, *(remedy.memory.total for remedy in shown)])
    names = vega_lite.texts(figure, "bars")
    assert [name.split("\n")[0] for name in names] == ["as requested", *(remedy.name for remedy in shown)]
    assert all(("changes the result" in name) != own.same_result for name, own in zip(names[1:], shown, strict=True))


@pytest.fixture(scope="module")
def budget() -> plan.BudgetPlan:
    return plan.plan_budget(plan.budget_from(compute=5.76e21), tokens_available=50e9)


def test_the_surfaces_lines_are_of_equal_loss_and_of_equal_compute(budget):
    figure = surface_figure(budget)
    vega_lite.drawn(figure)
    contours, compute, limit = vega_lite.marks(figure, "line")
    by = law(budget.best.law)
    lines = {text: [] for text in vega_lite.column(contours, "text")}
    assert len(lines) >= 10
    for row in contours["data"]["values"]:
        lines[row["text"]].append(by.loss(row["n"], row["d"]))
    for text, losses in lines.items():
        assert losses == pytest.approx([float(text)] * len(losses), abs=1e-9)
    rows = compute["data"]["values"]
    budgets = {row["line"]: 6 * row["n"] * row["d"] for row in rows}
    assert list(budgets.values()) == pytest.approx([5.76e20, 5.76e21, 5.76e22])
    assert set(vega_lite.column(limit, "d")) == {50e9}


def test_the_surfaces_marks_are_the_laws_optima_and_the_choice(budget):
    laws, choice = vega_lite.marks(surface_figure(budget), "point")
    names = vega_lite.texts(surface_figure(budget), "laws")
    shown = {names[row["law"]]: (row["n"], row["d"]) for row in laws["data"]["values"]}
    assert shown.items() <= {own.law: (own.parameters, own.tokens) for own in budget.optima}.items()
    assert budget.best.law in shown
    assert choice["data"]["values"] == [{"n": budget.choice.parameters, "d": budget.choice.tokens}]


def test_a_fit_is_drawn_with_its_runs_its_frontier_and_equal_compute():
    fit = plan.fit_law(plan.read_runs(RUNS), bootstrap=2, hold_out=False)
    figure = law_figure(fit)
    vega_lite.drawn(figure)
    dots, near, best = vega_lite.marks(figure, "point")
    assert vega_lite.column(dots, "loss") == list(fit.runs.losses)
    assert vega_lite.column(dots, "flops") == list(fit.runs.flops)
    (band,) = vega_lite.marks(figure, "area")
    for row in band["data"]["values"]:
        assert row["loss"] == pytest.approx(optimum(row["flops"], fit.law).loss)
        assert row["low"] <= row["high"]
    assert len(best["data"]["values"]) == 5
    known = set(zip(fit.runs.parameters, fit.runs.losses, strict=True))
    assert {(row["parameters"], row["loss"]) for row in near["data"]["values"]} <= known
    _, curves = vega_lite.marks(figure, "line")
    for row in best["data"]["values"]:
        own = [each["loss"] for each in curves["data"]["values"] if each["budget"] == row["budget"]]
        assert min(own) == pytest.approx(row["loss"], abs=1e-3)
        assert math.isfinite(max(own))
