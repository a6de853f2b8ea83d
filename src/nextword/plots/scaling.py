"""Scaling laws: the loss over size and data, and a law fitted to runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .spec import COUNT, POWER, RAMP, Spec, field, figure, heading, lookup, named, numbers, palette, powers_of_ten
from .theme import SERIES

Point = tuple[float, float]
Range = tuple[float, float]
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right")


@dataclass(frozen=True)
class Line:
    """Points of a curve, and the text beside it."""

    text: str
    points: Sequence[Point]


@dataclass(frozen=True)
class IsoFlop:
    """Loss against parameters at one budget: by the law, its lowest point, and runs near the budget."""

    text: str
    curve: Sequence[Point]
    best: Point
    runs: Sequence[Point]


def loss_surface(
    contours: Sequence[Line], budgets: Sequence[Line], optima: Sequence[Line], chosen: Point, sizes: Range,
    tokens: Range, title: str, limit: Line | None = None,
) -> Spec:  # fmt: skip
    """Lines of equal loss over parameters and tokens, lines of equal compute, and every law's optimum.

    The middle one of `budgets` is the plan's. `optima` have one point each. `limit`: the line of the data there is.
    """
    x = log_axis("parameters", sizes, COUNT, grid=False)
    y = log_axis("tokens", tokens, COUNT, grid=False)

    def layer(mark: Spec, rows: Sequence[dict[str, Any]], **more: Any) -> Spec:
        return {"data": numbers(rows), "mark": mark, "encoding": {"x": field("n", **x), "y": field("d", **y), **more}}

    def along(lines: Sequence[Line], mark: Spec, **more: Any) -> Spec:
        rows = [
            {"line": number, "text": line.text, "place": place, "n": point[0], "d": point[1]}
            for number, line in enumerate(lines)
            for place, point in enumerate(line.points)
        ]
        order: Spec = {"detail": field("line", kind="nominal"), "order": field("place")}
        return layer({"type": "line", "clip": True, **mark}, rows, **order, **more)

    def beside(lines: Sequence[Line], at: int, **mark: Any) -> list[Spec]:
        """The text of each line at one of its points."""
        rows = [{"text": line.text, "n": line.points[at][0], "d": line.points[at][1]} for line in lines if line.points]
        halo = {"color": named("background"), "stroke": named("background"), "strokeWidth": 4}
        text = field("text", kind="nominal")
        return [layer({"type": "text", "fontSize": 10, **mark, **over}, rows, text=text) for over in (halo, {})]

    middle = len(budgets) // 2
    dash = {"condition": {"test": f"datum.line == {middle}", "value": [1, 0]}, "value": [3, 3]}
    marks = [  # later ones smaller, so that those of agreeing laws stay visible
        {"law": n, "n": own.points[0][0], "d": own.points[0][1], "size": max(70, 190 - 24 * n)}
        for n, own in enumerate(optima)
    ]
    marks = [row for row in marks if sizes[0] < row["n"] < sizes[1] and tokens[0] < row["d"] < tokens[1]]
    legend = {"title": None, "offset": 48, "labelExpr": "laws[datum.value]", "values": [row["law"] for row in marks]}
    shapes = {"domain": list(range(len(optima))), "range": [_SHAPES[n % len(_SHAPES)] for n in range(len(optima))]}
    layers = [
        along(contours, {"color": named("grey"), "strokeWidth": 0.8, "opacity": 0.7}),
        *beside(_ending_inside(contours, tokens), -1, align="left", dx=4, color=named("grey")),
        along(budgets, {"color": named("red"), "strokeWidth": 1.5}, strokeDash=dash),
        *beside(_names_of_budgets(budgets, tokens), 0, align="left", dx=5, dy=-5, color=named("red")),
        *([along([limit], {"color": named("ink"), "strokeDash": [4, 3]}),
           *beside([limit], 0, align="left", dx=5, dy=-7)] if limit else []),
        layer(
            {"type": "point", "filled": True, "opacity": 1, "stroke": named("background"),
             "strokeWidth": 0.7}, marks, size=field("size", scale=None),
            color=field("law", kind="nominal", scale=palette(len(optima), SERIES), legend=legend),
            shape=field("law", kind="nominal", scale=shapes, legend=legend),
        ),
        layer({"type": "point", "size": 330, "color": named("ink"), "strokeWidth": 1.5},
              [{"n": chosen[0], "d": chosen[1]}]),
    ]  # fmt: skip
    laws = lookup("laws", [own.text for own in optima])
    return figure(title, "lines: loss; red: equal compute; ring: the model", params=[laws], width=560, height=400,
                  layer=layers)  # fmt: skip


def _ending_inside(contours: Sequence[Line], tokens: Range) -> list[Line]:
    return [line for line in contours if line.points and tokens[0] < line.points[-1][1] < tokens[1]]


def _names_of_budgets(budgets: Sequence[Line], tokens: Range) -> list[Line]:
    """Each budget's name at its highest point in view."""
    seen = [Line(own.text, [point for point in own.points if point[1] < tokens[1] / 1.15]) for own in budgets]
    return [line for line in seen if line.points]


def law_fit(
    runs: Sequence[tuple[float, float, float]], frontier: Sequence[tuple[float, float, float, float]],
    isoflops: Sequence[IsoFlop], title: str, unit: str = "nats/token",
) -> Spec:  # fmt: skip
    """Runs as (parameters, FLOPs, loss), the frontier as (FLOPs, loss, low, high), and loss against size."""
    losses = [loss for _, _, loss in runs]
    margin = 0.05 * (max(losses) - min(losses) or 1.0)
    inside = min([*losses, *(row[2] for row in frontier)]) - margin, max(losses) + margin
    loss = {"title": f"loss, {unit}", "scale": {"domain": list(inside), "nice": False}}
    panels = [_frontier(runs, frontier, loss), _isoflops(isoflops, loss)]
    names = lookup("budgets", [own.text for own in isoflops])
    return figure(title, params=[names], hconcat=panels, spacing=40)


def _frontier(runs: Sequence[tuple[float, float, float]], frontier: Sequence[tuple[float, ...]], y: Spec) -> Spec:
    flops = [own for _, own, _ in runs] + [row[0] for row in frontier]
    x = log_axis("FLOPs (6ND)", (min(flops), max(flops)), POWER)
    sizes = {"type": "log", "range": RAMP}
    bar: Spec = {
        "orient": "right",
        "title": "parameters",
        "labelExpr": COUNT,
        "gradientLength": 150,
        "values": powers_of_ten(min(n for n, _, _ in runs), max(n for n, _, _ in runs))["values"],
    }
    dots = {
        "data": numbers([{"parameters": n, "flops": c, "loss": loss} for n, c, loss in runs]),
        "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.85},
        "encoding": {
            "x": field("flops", **x), "y": field("loss", **y),
            "color": field("parameters", scale=sizes, legend=bar),
            "tooltip": [field(name, format=".4~g") for name in ("parameters", "flops", "loss")],
        },
    }  # fmt: skip
    best = numbers([dict(zip(("flops", "loss", "low", "high"), row, strict=True)) for row in frontier])
    band = {
        "data": best, "mark": {"type": "area", "color": named("red"), "opacity": 0.2},
        "encoding": {"x": field("flops", **x), "y": field("low", **y), "y2": {"field": "high"}},
    }  # fmt: skip
    line: Spec = {
        "data": best, "mark": {"type": "line", "color": named("red")},
        "encoding": {"x": field("flops", **x), "y": field("loss", **y)},
    }  # fmt: skip
    title = heading("runs, and the law's efficient frontier", "red: the lowest loss for a budget, with 95% intervals")
    return {"title": title, "width": 380, "height": 300, "layer": [band, line, dots]}


def _isoflops(isoflops: Sequence[IsoFlop], y: Spec) -> Spec:
    points = [point for own in isoflops for point in own.curve]
    x = log_axis("parameters", (min(n for n, _ in points), max(n for n, _ in points)), COUNT)
    legend = {
        "title": "FLOPs: optimum",
        "labelExpr": "budgets[datum.value]",
        "orient": "right",
        "symbolType": "circle",
        "symbolOpacity": 1,
        "symbolSize": 80,
    }
    colour = field("budget", kind="nominal", scale=palette(len(isoflops), SERIES), legend=legend)

    def layer(mark: Spec, which: Sequence[Sequence[Point]]) -> Spec:
        rows = [
            {"budget": number, "parameters": n, "loss": loss} for number, own in enumerate(which) for n, loss in own
        ]
        encoding = {"x": field("parameters", **x), "y": field("loss", **y), "color": colour}
        return {"data": numbers(rows), "mark": {"clip": True, **mark}, "encoding": encoding}

    return {
        "title": heading("equal compute", "the law, its optima, and runs within 15% of the budget"),
        "width": 380, "height": 300,
        "layer": [
            layer({"type": "line"}, [own.curve for own in isoflops]),
            layer({"type": "point", "filled": True, "size": 22, "opacity": 0.7}, [own.runs for own in isoflops]),
            layer({"type": "point", "filled": True, "size": 90, "opacity": 1}, [[own.best] for own in isoflops]),
        ],
    }  # fmt: skip


def log_axis(title: str, domain: Range, labels: str, grid: bool = True) -> dict[str, Any]:
    """A logarithmic axis over just `domain`."""
    axis = powers_of_ten(*domain) | {"labelExpr": labels, "grid": grid}
    return {"title": title, "scale": {"type": "log", "domain": list(domain), "nice": False}, "axis": axis}
