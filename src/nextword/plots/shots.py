"""Scores of an evaluation against the number of shots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .spec import Spec, field, figure, lookup, named, numbers, palette
from .theme import SERIES

_WIDTH, _HEIGHT = 600, 280
_APART = 14.0  # pixels, between marks of one number of shots
_SHAPES = ("circle", "square", "triangle-up", "diamond")


@dataclass(frozen=True)
class Score:
    """A score with its interval: of a series and a variant of it, by number. `caveat`: why to read it with care."""

    series: int
    variant: int
    shots: int
    value: float
    low: float
    high: float
    caveat: str = ""


def shots(
    scores: Sequence[Score], series: Sequence[str], variants: Sequence[str], metric: str, majority: float | None = None
) -> Spec:
    """Scores against shots, with their intervals: a line for each series and variant, their marks side by side.

    Variant 0 is the plain one. Hollow marks carry a caveat. `majority`: the score of always the most frequent label.
    """
    counts = sorted({own.shots for own in scores})
    tracks = sorted({(own.series, own.variant) for own in scores})
    apart = min(_APART / (_WIDTH / len(counts)), 0.8 / len(tracks))
    ends = [end for own in scores for end in (own.low, own.value, own.high) if math.isfinite(end)]
    ends += [0.0 if majority is None else majority]
    margin = 0.05 * (max(ends) - min(ends) or 1.0)
    domain = [min(ends) - margin, max(ends) + margin]
    aside = {track: apart * (number - (len(tracks) - 1) / 2) for number, track in enumerate(tracks)}
    rows = [
        {
            "place": counts.index(own.shots) + aside[own.series, own.variant],
            "series": own.series, "variant": own.variant + 1, "shots": own.shots, "value": own.value,
            "low": max(domain[0], own.low), "high": min(domain[1], own.high), "caveat": own.caveat,
        }
        for own in scores
    ]  # fmt: skip
    said = ["hollow: too few few-shot seeds to stand for other shots"] * any(own.caveat for own in scores)
    said += ["dotted: always the most frequent label"] * (majority is not None)
    return figure(
        f"{metric} against shots", "; ".join(["bars: 95% intervals", *said]),
        params=[lookup("series", series), lookup("variants", ["", *variants]), lookup("counts", map(str, counts))],
        width=_WIDTH, height=_HEIGHT, data=numbers(rows),
        layer=[*_majority(majority, domain), *_layers(metric, domain, len(counts), series, variants)],
    )  # fmt: skip


def _majority(majority: float | None, domain: list[float]) -> list[Spec]:
    if majority is None:
        return []
    mark = {"type": "rule", "strokeDash": [2, 4], "color": named("grey"), "strokeWidth": 1.5}
    encoding = {"y": field("value", scale={"domain": domain, "nice": False})}
    return [{"data": numbers([{"value": majority}]), "mark": mark, "encoding": encoding}]


def _layers(metric: str, domain: list[float], count: int, series: Sequence[str], variants: Sequence[str]) -> list[Spec]:
    axis: Spec = {"values": list(range(count)), "labelExpr": "counts[datum.value]", "grid": False, "ticks": False}
    x = field("place", "shots", scale={"domain": [-0.5, count - 0.5], "nice": False}, axis=axis)
    y: Spec = {"title": metric, "scale": {"domain": domain, "nice": False}}

    def legend(name: str, of: Sequence[str]) -> Spec | None:
        if len(of) < 2:
            return None
        grey = {"symbolStrokeWidth": 0, "symbolFillColor": named("grey")} if name == "variants" else {}
        return {"title": None, "labelExpr": f"{name}[datum.value]", "orient": "bottom", "columns": 3, **grey}

    colour = field("series", kind="nominal", scale=palette(len(series), SERIES), legend=legend("series", series))
    numbered = [n + 1 for n in range(len(variants))]  # from 1: legends with the domain of the series' are merged
    shapes = {"domain": numbered, "range": [_SHAPES[(n - 1) % len(_SHAPES)] for n in numbered]}
    dashes = {"domain": numbered, "range": [[1, 0] if n == 1 else [5, 4] for n in numbered]}
    shape = field("variant", kind="nominal", scale=shapes, legend=legend("variants", variants))
    dash = field("variant", kind="nominal", scale=dashes, legend=legend("variants", variants))
    said = [field("shots"), field("value", metric, format=".3f"), field("low", format=".3f"),
            field("high", format=".3f"), field("caveat", kind="nominal")]  # fmt: skip
    return [
        {"mark": {"type": "line", "strokeWidth": 1.8},
         "encoding": {"x": x, "y": field("value", **y), "color": colour, "strokeDash": dash, "order": field("place")}},
        {"mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
         "encoding": {"x": x, "y": field("low", **y), "y2": {"field": "high"}, "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
         "encoding": {"x": x, "y": field("value", **y), "color": colour, "shape": shape, "tooltip": said}},
        {"mark": {"type": "point", "filled": True, "size": 40, "color": named("background"), "opacity": 1},
         "transform": [{"filter": "datum.caveat"}],
         "encoding": {"x": x, "y": field("value", **y), "shape": shape, "tooltip": said}},
    ]  # fmt: skip
