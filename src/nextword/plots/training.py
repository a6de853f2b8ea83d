"""Training runs: loss curves, and the study of context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .spec import COUNT, Spec, field, figure, heading, lookup, named, numbers, palette, powers_of_ten
from .theme import SERIES

_MOST_POINTS = 1000  # of a curve
_LOSS = "loss, nats a token"


@dataclass(frozen=True)
class Curve:
    """One run: the loss of each step and its running mean, and held-out losses, each against tokens seen."""

    name: str
    tokens: Sequence[float]
    losses: Sequence[float]
    means: Sequence[float]
    val_tokens: Sequence[float]
    val: Sequence[float]


def loss_curves(curves: Sequence[Curve]) -> Spec:
    """Loss against tokens: faint per step, a line for the running mean, dots for held-out loss."""
    steps: list[dict[str, float]] = []
    held_out: list[dict[str, float]] = []
    last: list[dict[str, float]] = []
    finite: list[float] = []
    for run, own in enumerate(curves):
        count = len(own.tokens)
        kept = sorted({*range(0, count, math.ceil(count / _MOST_POINTS)), count - 1}) if count else []
        steps += [{"run": run, "tokens": own.tokens[n], "loss": own.losses[n], "mean": own.means[n]} for n in kept]
        evaluated = zip(own.val_tokens, own.val, strict=True)
        points = [{"run": run, "tokens": at, "loss": loss} for at, loss in evaluated]
        held_out += points
        last += points[-1:]
        finite += [loss for loss in (*own.losses[count // 50 :], *own.val) if math.isfinite(loss)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    legend = {
        "title": None,
        "labelExpr": "runs[datum.value]",
        "orient": "bottom",
        "columns": 3,
        "symbolType": "circle",
        "symbolOpacity": 1,
    }
    colour = field("run", kind="nominal", scale=palette(len(curves), SERIES), legend=legend)
    y: Spec = {"title": _LOSS, "scale": {"domain": [low - 0.1, high + 0.1], "nice": False}}

    def layer(mark: Spec, loss: str = "loss", **more: Spec) -> Spec:
        x = field("tokens", "tokens seen", scale={"zero": True},
                  axis={"labelExpr": COUNT, "grid": False, "tickCount": 8})  # fmt: skip
        encoding = {"x": x, "y": field(loss, **y), "color": colour, **more}
        return {"mark": {"clip": True, **mark}, "encoding": encoding}

    dots = {"type": "point", "filled": True, "size": 45, "opacity": 1, "stroke": named("background"),
            "strokeWidth": 0.8, "tooltip": True}  # fmt: skip
    beside = {"type": "text", "align": "left", "dx": 7, "clip": False}
    return figure(
        "loss of training and of held-out text", "line: running mean of the steps; dots: held-out text",
        params=[lookup("runs", [own.name for own in curves])], width=600, height=320,
        layer=[
            {
                "data": numbers(steps),
                "layer": [
                    layer({"type": "line", "opacity": 0.25, "strokeWidth": 0.8}),
                    layer({"type": "line", "strokeWidth": 1.8}, "mean"),
                ],
            },
            {"data": numbers(held_out), **layer(dots)},
            {"data": numbers(last), **layer(beside, text=field("loss", format=".3f"))},
        ],
    ) | {"padding": {"left": 12, "right": 32, "top": 12, "bottom": 12}}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, at a number or under a name."""

    at: float | str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Kind:
    """One kind of model in the study of context. `useful`: tokens farther back than this are of use; 0: none."""

    name: str
    by_position: Sequence[Estimate]
    by_visible: Sequence[Estimate]
    useful: int
    tasks: Sequence[Estimate]
    speed: Sequence[Estimate]


def context_study(kinds: Sequence[Kind], guesses: Mapping[str, float]) -> Spec:
    """Panels: loss by position, loss by visible context, and, if measured, tasks and speed.

    `guesses`: right answers by chance.
    """
    useful = [{"kind": number, "at": own.useful} for number, own in enumerate(kinds) if own.useful]
    position = _lines(
        heading("loss by position", "of held-out text"), "tokens before it in the context",
        [own.by_position for own in kinds],
    )  # fmt: skip
    visible = _lines(
        heading("loss given only the last tokens", "dotted: tokens farther back than this are of use"),
        "visible tokens", [own.by_visible for own in kinds], useful,
    )  # fmt: skip
    tasks = _bars(
        heading("tasks", "copies after a delay, recall of pairs; line across: a guess"), "answers right",
        [own.tasks for own in kinds], guesses,
    )  # fmt: skip
    speed = _bars(
        heading("speed of training", "on one row: threads x length"), "tokens a second", [own.speed for own in kinds]
    )
    bars = [
        panel
        for panel, measured in ((tasks, [own.tasks for own in kinds]), (speed, [own.speed for own in kinds]))
        if any(measured)
    ]
    own: Spec = {"resolve": {"scale": {"xOffset": "independent"}}}
    return figure(
        "how much context each kind of model uses", "with 95% intervals",
        params=[lookup("kinds", [own.name for own in kinds])],
        vconcat=[
            {"hconcat": [position, visible], "spacing": 32},
            *([{"hconcat": bars, "spacing": 32, **own}] if bars else []),
        ],
        spacing=24, resolve={"legend": {"color": "shared"}, **own["resolve"]},
    )  # fmt: skip


def _colour(count: int) -> Spec:
    legend = {"title": None, "labelExpr": "kinds[datum.value]", "orient": "top", "symbolType": "circle"}
    return field("kind", kind="nominal", scale=palette(count, SERIES), legend=legend)


def _rows(which: Sequence[Sequence[Estimate]]) -> Spec:
    return numbers(
        {"kind": kind, "at": own.at, "mean": own.mean, "low": own.low, "high": own.high}
        for kind, estimates in enumerate(which)
        for own in estimates
    )


def _lines(
    title: Spec, horizontal: str, which: Sequence[Sequence[Estimate]], useful: Sequence[dict[str, int]] = ()
) -> Spec:
    places = [float(own.at) for estimates in which for own in estimates] or [1.0]
    axis = powers_of_ten(min(places), max(places) * 1.01) | {"grid": False, "format": "~s"}
    x = field("at", horizontal, scale={"type": "log", "nice": False, "padding": 12}, axis=axis)
    y: Spec = {"title": _LOSS, "scale": {"zero": False}}
    whisker: Spec = {
        "mark": {"type": "rule", "strokeWidth": 1.2},
        "encoding": {"x": x, "y": field("low", **y), "y2": {"field": "high"}},
    }
    line: Spec = {"mark": {"type": "line", "point": {"size": 28}}, "encoding": {"x": x, "y": field("mean", **y)}}
    layers: list[Spec] = [whisker, line]
    if useful:
        dotted = {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.2}
        layers.append({"data": numbers(useful), "mark": dotted, "encoding": {"x": x}})
    return {
        "title": title, "width": 330, "height": 210, "data": _rows(which), "layer": layers,
        "encoding": {"color": _colour(len(which))},
    }  # fmt: skip


def _bars(
    title: Spec, vertical: str, which: Sequence[Sequence[Estimate]], guesses: Mapping[str, float] | None = None
) -> Spec:
    order = list(dict.fromkeys(own.at for estimates in which for own in estimates))
    x = field("at", kind="nominal", sort=order, axis={"labelAngle": 0, "title": None, "labelLimit": 110})
    beside: Spec = {"xOffset": field("kind", kind="ordinal")}
    bar: Spec = {"mark": {"type": "bar"}, "encoding": {"x": x, "y": field("mean", vertical), **beside}}
    whisker: Spec = {
        "mark": {"type": "rule", "strokeWidth": 1.2},
        "encoding": {"x": x, "y": field("low", vertical), "y2": {"field": "high"}, **beside,
                     "color": {"value": named("ink")}},
    }  # fmt: skip
    layers: list[Spec] = [bar, whisker]
    if guesses:
        rows = [{"at": at, "mean": guess} for at, guess in guesses.items()]
        tick = {"type": "tick", "orient": "horizontal", "width": {"band": 1}, "thickness": 1.5}
        encoding = {"x": x, "y": field("mean", vertical), "color": {"value": named("ink")}}
        layers.append({"data": numbers(rows), "mark": tick, "encoding": encoding})
    return {
        "title": title, "width": 330, "height": 210,
        "data": _rows(which), "layer": layers, "encoding": {"color": _colour(len(which))},
    }  # fmt: skip
