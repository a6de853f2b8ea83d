"""Runs at equal FLOPs: each budget's parabola, the best sizes against compute, and the frontier of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .scaling import Line, Point, Range, log_axis
from .spec import COUNT, POWER, RAMP, Spec, field, figure, heading, lookup, named, numbers, palette, powers_of_ten
from .theme import LIGHT, SERIES

Band = tuple[float, float, float, float]  # FLOPs, a value, and its interval
_SIDE, _ABREAST = 300, 2  # pixels of a panel, and panels beside each other
_FEW = 8  # budgets that a legend lists


@dataclass(frozen=True)
class Budget:
    """Runs of one budget as (size, loss), its parabola, and its minimum with the size's interval, if it has one."""

    flops: float
    runs: Sequence[Point]
    curve: Sequence[Point] = ()
    best: Point | None = None
    interval: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Residual:
    """A run, its loss over that of a law - 1, and whether the law was fitted to it."""

    size: float
    tokens: float
    loss: float
    error: float
    fitted: bool


def sweep(
    budgets: Sequence[Budget], sizes: Sequence[Band], frontier: Sequence[Band], left_out: Band | None, title: str,
    size: str, unit: str, made: Point | None = None,
) -> Spec:  # fmt: skip
    """Up to three panels: `sizes` and `frontier` are curves over compute.

    `left_out`: a budget predicted from the others.
    `made`: FLOPs and loss of the run that was predicted.
    """
    panels = [_parabolas(budgets, size, unit)] if any(own.runs for own in budgets) else []
    if sizes:
        panels.append(_sizes(budgets, sizes, size))
    if frontier:
        panels.append(_frontier(budgets, frontier, left_out, made, unit))
    return figure(title, concat=panels, columns=_ABREAST, spacing=36, resolve={"scale": {"color": "independent"}})


def curves(lines: Sequence[Line], title: str, x: str, unit: str, dots: Sequence[Line] = ()) -> Spec:
    """Losses over a logarithmic axis, such as of learning rates or of compute; `dots` have the colours of `lines`."""
    drawn = [*lines, *dots]
    across = log_axis(x, _spread(at for own in drawn for at, _ in own.points), POWER)
    y = _losses((loss for own in drawn for _, loss in own.points), unit)
    legend = {"title": None, "labelExpr": "lines[datum.value]", "orient": "right", "symbolType": "circle"}
    colour = field("line", kind="nominal", scale=palette(len(lines), SERIES), legend=legend)

    def layer(mark: Spec, which: Sequence[Line]) -> Spec:
        rows = [{"line": number, "x": at, "loss": loss} for number, own in enumerate(which) for at, loss in own.points]
        encoding = {"x": field("x", **across), "y": field("loss", **y), "color": colour}
        return {"data": numbers(rows), "mark": mark, "encoding": encoding}

    point = {"type": "point", "filled": True, "size": 40, "opacity": 1}
    return figure(title, width=_SIDE, height=_SIDE, params=[lookup("lines", [own.text for own in lines])],
                  layer=[layer({"type": "line"}, lines), layer(point, dots or lines)])  # fmt: skip


def surface(
    contours: Sequence[Line], runs: Sequence[Residual], minima: Sequence[Point], title: str, size: str,
    sizes: Range, tokens: Range,
) -> Spec:  # fmt: skip
    """Lines of equal loss over size and tokens, runs by how far they are off, and the budgets' minima."""
    x, y = log_axis(size, sizes, COUNT, grid=False), log_axis("tokens", tokens, COUNT, grid=False)
    most = max((abs(own.error) for own in runs if own.fitted), default=1.0)
    colour = {"clamp": True, "domain": [-most, 0, most], "range": [LIGHT["blue"], LIGHT["pale"], LIGHT["red"]]}
    legend = {"title": "measured / law - 1", "format": "+.2~p", "gradientLength": 150, "offset": 48}

    def layer(mark: Spec, rows: Iterable[Mapping[str, Any]], **more: Any) -> Spec:
        encoding = {"x": field("size", **x), "y": field("tokens", **y), **more}
        return {"data": numbers(rows), "mark": {"clip": True, **mark}, "encoding": encoding}

    lines = [{"line": number, "size": n, "tokens": d} for number, own in enumerate(contours) for n, d in own.points]
    ends = [(own.text, *own.points[-1]) for own in contours if own.points]
    names = [{"text": said, "size": n, "tokens": d} for said, n, d in ends if tokens[0] < d < tokens[1]]
    best = [{"size": n, "tokens": d} for n, d in minima]
    dots = [{"size": own.size, "tokens": own.tokens, "error": own.error, "loss": own.loss,
             "fitted": own.fitted} for own in runs]  # fmt: skip
    said = [field(name, format=".4~g") for name in ("size", "tokens", "loss", "error")]
    text = {"type": "text", "clip": False, "fontSize": 10, "align": "left", "dx": 4, "color": named("grey")}
    return figure(
        title, "lines: loss by the law; dots: runs, small ones not fitted; red: minima of the budgets",
        width=420, height=_SIDE,
        layer=[
            layer({"type": "line", "color": named("grey"), "strokeWidth": 0.8, "opacity": 0.7}, lines,
                  detail=field("line", kind="nominal")),
            layer(text, names, text=field("text", kind="nominal")),
            layer({"type": "line", "color": named("red"), "strokeWidth": 1.2, "strokeDash": [4, 3]}, best),
            layer({"type": "point", "filled": True, "opacity": 1, "stroke": named("ink"), "strokeWidth": 0.7}, dots,
                  color=field("error", scale=colour, legend=legend), tooltip=said,
                  size={"condition": {"test": "datum.fitted", "value": 110}, "value": 35}),
        ],
    )  # fmt: skip


def _parabolas(budgets: Sequence[Budget], size: str, unit: str) -> Spec:
    points = [point for own in budgets for point in (*own.runs, *own.curve)]
    x, y = log_axis(size, _spread(own for own, _ in points), COUNT), _losses((loss for _, loss in points), unit)
    few = [own.flops for own in budgets]
    values = few if len(few) <= _FEW else powers_of_ten(*_ends(few))["values"]
    legend = {"title": "FLOPs", "type": "symbol", "orient": "right", "format": ".2~e", "values": values}
    colour = _colour(budgets) | {"legend": legend if len(budgets) > 1 else None}

    def layer(mark: Spec, rows: Iterable[Mapping[str, Any]], **more: Any) -> Spec:
        encoding = {"x": field("size", **x), "y": field("loss", **y), "color": colour, **more}
        return {"data": numbers(rows), "mark": mark, "encoding": encoding}

    def rows(which: str) -> list[dict[str, Any]]:
        return [{"flops": own.flops, "size": n, "loss": loss} for own in budgets for n, loss in getattr(own, which)]

    best = [{"flops": own.flops, "size": own.best[0], "loss": own.best[1], "low": own.interval[0],
             "high": own.interval[1]} for own in budgets if own.best]  # fmt: skip
    said = [field(name, format=".4~g") for name in ("flops", "size", "loss")]
    return {
        "title": heading("equal compute", "runs, parabolas, and their minima with 95% intervals"),
        "width": _SIDE, "height": _SIDE,
        "layer": [
            layer({"type": "line", "strokeWidth": 1.2}, rows("curve"), detail=field("flops", kind="nominal")),
            layer({"type": "point", "filled": True, "size": 20, "opacity": 0.8}, rows("runs"), tooltip=said),
            layer({"type": "rule", "strokeWidth": 2}, best, x=field("low", **x), x2={"field": "high"}),
            layer({"type": "point", "filled": True, "size": 70, "opacity": 1}, best, tooltip=said),
        ],
    }  # fmt: skip


def _sizes(budgets: Sequence[Budget], line: Sequence[Band], size: str) -> Spec:
    found = [(own.flops, own.best[0], *own.interval) for own in budgets if own.best]
    y = log_axis(size, _spread(value for row in (*line, *found) for value in row[1:]), COUNT)
    return {
        "title": heading("best size", "of each budget, and its power of compute"),
        "width": _SIDE, "height": _SIDE, "layer": [*_curve(line, y), *_dots(found, line, y, _colour(budgets))],
    }  # fmt: skip


def _frontier(
    budgets: Sequence[Budget], line: Sequence[Band], left_out: Band | None, made: Point | None, unit: str
) -> Spec:
    minima = [(own.flops, own.best[1], own.best[1], own.best[1]) for own in budgets if own.best]
    rings = [left_out] if left_out else []
    measured = [(made[0], made[1], made[1], made[1])] if made else []
    y = _losses((value for row in (*line, *minima, *rings, *measured) for value in row[1:]), unit)
    layers, said = [*_curve(line, y), *_dots(minima, line, y, _colour(budgets))], "the minima, and L = E + K / C^γ"
    if left_out is not None:
        said += "; ring: predicted from the smaller budgets"
        ring = {"type": "point", "size": 200, "color": named("ink"), "strokeWidth": 1.5}
        layers += [_over(line, y, [left_out], ring), _bars(line, y, [left_out], {"color": named("ink")})]
    if made is not None:
        said += ", dot: measured"
        layers.append(_over(line, y, measured, {"type": "point", "filled": True, "size": 70, "color": named("ink")}))
    return {"title": heading("frontier", said), "width": _SIDE, "height": _SIDE, "layer": layers}


def _curve(line: Sequence[Band], y: Spec) -> list[Spec]:
    """A curve over compute, and its band."""
    area = {"type": "area", "color": named("red"), "opacity": 0.2}
    band = {"y": field("low", **y), "y2": {"field": "high"}}
    return [_over(line, y, line, area, **band),
            _over(line, y, line, {"type": "line", "color": named("red"), "strokeWidth": 1.5})]  # fmt: skip


def _dots(rows: Sequence[Band], line: Sequence[Band], y: Spec, colour: Spec) -> list[Spec]:
    """Values of budgets with their intervals."""
    said = [field(name, format=".4~g") for name in ("flops", "value", "low", "high")]
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    return [_bars(line, y, rows, {"strokeWidth": 2}, color=colour),
            _over(line, y, rows, dot, color=colour, tooltip=said)]  # fmt: skip


def _bars(line: Sequence[Band], y: Spec, rows: Sequence[Band], mark: Spec, **more: Any) -> Spec:
    return _over(line, y, rows, {"type": "rule", **mark}, y=field("low", **y), y2={"field": "high"}, **more)


def _over(line: Sequence[Band], axis: Spec, rows: Sequence[Band], mark: Spec, **more: Any) -> Spec:
    """Rows over the compute that `line` spans."""
    x = log_axis("FLOPs", _spread(row[0] for row in line), POWER)
    return {"data": _named(rows), "mark": mark,
            "encoding": {"x": field("flops", **x), "y": field("value", **axis), **more}}  # fmt: skip


def _colour(budgets: Sequence[Budget]) -> Spec:
    scale = {"type": "log", "range": RAMP, "domain": list(_ends(own.flops for own in budgets))}
    return field("flops", scale=scale, legend=None)


def _losses(values: Iterable[float], unit: str) -> Spec:
    low, high = _ends(values)
    margin = 0.05 * (high - low or 1.0)
    return {"title": f"loss, {unit}", "scale": {"domain": [low - margin, high + margin], "nice": False}}


def _named(rows: Iterable[Band]) -> Spec:
    return numbers(dict(zip(("flops", "value", "low", "high"), row, strict=True)) for row in rows)


def _ends(values: Iterable[float]) -> Range:
    """The smallest and the largest, ignoring NaN."""
    finite = [value for value in values if value == value]
    return min(finite), max(finite)


def _spread(values: Iterable[float]) -> Range:
    """The ends of a logarithmic axis, with some room."""
    low, high = _ends(values)
    room = max((high / low) ** 0.04, 1.05)
    return low / room, high * room
