"""Figures from values: what is drawn, in what scale, and with which names."""

from __future__ import annotations

import json
import math

import pytest

import vega_lite
from nextword import plots
from nextword.plots.memory import memory
from nextword.plots.scaling import IsoFlop, Line, law_fit, loss_surface
from nextword.plots.shots import Score, shots
from nextword.plots.training import Curve, loss_curves

EVIL = '<b onclick="x()">"; alert(1) // {"signal": "x"}'


def _curve(name: str, steps: int) -> Curve:
    tokens = [100.0 * (step + 1) for step in range(steps)]
    losses = [3 + 1 / (step + 1) for step in range(steps)]
    return Curve(name, tokens, losses, losses, tokens[9::10], losses[9::10])


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    figure = loss_curves([_curve("run", 12_345)])
    vega_lite.drawn(figure)
    steps, mean = vega_lite.marks(figure, "line")
    assert steps["data"] is not None
    tokens = vega_lite.column(mean, "tokens")
    assert len(tokens) <= 1001
    assert (tokens[0], tokens[-1]) == (100.0, 1_234_500.0)
    assert tokens == sorted(tokens)


def test_curves_show_each_runs_own_numbers():
    curves = [_curve(EVIL, 30), _curve(EVIL, 20)]  # runs of one name in two folders
    figure = loss_curves(curves)
    assert "onclick=" not in vega_lite.drawn(figure).replace("&quot;", "").replace("&lt;b onclick=", "")
    assert vega_lite.texts(figure, "runs") == [EVIL, EVIL]
    steps = vega_lite.marks(figure, "line")[0]["data"]["values"]
    dots = vega_lite.marks(figure, "point")[0]["data"]["values"]
    for number, own in enumerate(curves):
        assert [row["loss"] for row in steps if row["run"] == number] == list(own.losses)
        assert [row["loss"] for row in dots if row["run"] == number] == list(own.val)
    (last,) = vega_lite.marks(figure, "text")
    assert vega_lite.column(last, "loss") == [own.val[-1] for own in curves]


def test_a_loss_that_is_no_number_is_left_out():
    figure = loss_curves([Curve("run", [1.0, 2.0], [math.nan, 3.0], [math.nan, 3.0], [], [])])
    vega_lite.drawn(figure)
    json.dumps(figure, allow_nan=False)
    assert vega_lite.column(vega_lite.marks(figure, "line")[0], "loss") == [None, 3.0]
    vega_lite.drawn(loss_curves([Curve("run", [1.0], [math.nan], [math.nan], [], [])]))


SCORES = [
    Score(series, variant, shots, 0.5 + 0.1 * series + 0.02 * shots, 0.4, 0.8, "few seeds" if shots == 1 else "")
    for series in range(2)
    for variant in range(2)
    for shots in (0, 1, 4)
]


def test_scores_stand_in_the_order_of_their_shots_and_beside_each_other():
    figure = shots(SCORES, ["one", EVIL], ["as the model answers", "random labels"], "accuracy", 0.5)
    svg = vega_lite.drawn(figure)
    assert "random labels" in svg
    rows = figure["data"]["values"]
    assert [row["value"] for row in rows] == [score.value for score in SCORES]
    assert [round(row["place"]) for row in rows] == [(0, 1, 4).index(score.shots) for score in SCORES]
    assert len({row["place"] for row in rows}) == len(rows)
    hollow = vega_lite.marks(figure, "point")[1]
    assert hollow["transform"] == [{"filter": "datum.caveat"}]
    majority = vega_lite.marks(figure, "rule")[0]
    assert vega_lite.column(majority, "value") == [0.5]


def test_an_interval_without_an_end_goes_to_the_edge():
    figure = shots([Score(0, 0, 0, 0.5, -math.inf, math.inf)], ["x"], ["y"], "accuracy")
    vega_lite.drawn(figure)
    (row,) = figure["data"]["values"]
    domain = vega_lite.marks(figure, "rule")[0]["encoding"]["y"]["scale"]["domain"]
    assert [row["low"], row["high"]] == domain
    assert all(map(math.isfinite, domain))


def test_more_series_than_colours_take_them_again():
    scores = [Score(series, 0, shots, 0.5, 0.4, 0.6) for series in range(8) for shots in (0, 1)]
    figure = shots(scores, [f"model {n}" for n in range(8)], ["plain"], "accuracy")
    vega_lite.drawn(figure)
    colours = [each["expr"] for each in vega_lite.marks(figure, "line")[0]["encoding"]["color"]["scale"]["range"]]
    assert colours[:2] == colours[6:]
    assert len(set(colours)) == 6


def test_names_of_laws_budgets_and_bars_are_data():
    surface = loss_surface(
        [Line(EVIL, [(1e8, 1e10), (1e9, 1e9)])], [Line(EVIL, [(1e8, 1e10), (1e9, 1e9)])], [Line(EVIL, [(3e8, 3e9)])],
        (3e8, 3e9), (1e8, 1e9), (1e9, 1e10), EVIL, Line(EVIL, [(1e8, 2e9), (1e9, 2e9)]),
    )  # fmt: skip
    fit = law_fit(
        [(1e6, 1e15, 3.0), (1e7, 1e16, 2.5)], [(1e15, 3.0, 2.9, 3.1), (1e16, 2.5, 2.4, 2.6)],
        [IsoFlop(EVIL, [(1e6, 3.0), (1e7, 2.9)], (1e7, 2.9), [(1e6, 3.0)])], EVIL,
    )  # fmt: skip
    bars = memory([(EVIL, {EVIL: 1e9, "weights": 2e9}), (EVIL, {"weights": 3e9})], {EVIL: 4e9}, EVIL)
    for figure in (surface, fit, bars):
        assert "<b onclick" not in vega_lite.drawn(figure)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(1e15, 1e19, [1e15, 1e16, 1e17, 1e18, 1e19]), (3.0, 60.0, [5, 10, 20, 50]), (1e6, 1e6, [1e6])],
)
def test_logarithmic_axes_are_labelled_at_round_numbers_in_view(low, high, shown):
    from nextword.plots.spec import powers_of_ten

    assert powers_of_ten(low, high)["values"] == pytest.approx(shown)


def test_notebooks_get_a_figure_that_their_vega_lite_knows():
    bundle = plots.mime_bundle("text", loss_curves([_curve("run", 3)]))
    assert set(bundle) == {"text/plain", "application/vnd.vegalite.v5+json"}
    spec = bundle["application/vnd.vegalite.v5+json"]
    assert spec["$schema"].endswith("/v5.json")
    import vl_convert

    assert vl_convert.vegalite_to_svg(json.dumps(spec), vl_version="5.20").startswith("<svg")
