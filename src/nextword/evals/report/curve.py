"""The report's curve: scores against shots with intervals, as SVG, and its legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from ..result_rows import ResultRow, differing, prefixes
from ..statistics import with_interval
from ..summary import Result

_LEFT, _TOP, _WIDTH, _HEIGHT = 52, 14, 588, 270
_COLOURS = 6  # classes c0 ... c5 of page.css
_APART = 14.0  # largest distance between marks of one number of shots

Series = tuple[str, str]  # model, template
Scale = Callable[[float], float]


def curve(result: Result) -> str:
    """Scores against shots with their intervals: a line for each model and template, and for each variant of it.

    Empty for a single score.
    """
    if len(result.rows) == 1:
        return ""
    shots = sorted({row.shots for row in result.rows})
    low, high = _range(result)
    series, tracks = _series(result), _tracks(result)
    slot = _WIDTH / len(shots)
    apart = min(_APART, 0.8 * slot / len(tracks))

    def x(row: ResultRow) -> float:
        number = tracks.index((row.model, row.template, row.variant))
        return _LEFT + slot * (shots.index(row.shots) + 0.5) + apart * (number - (len(tracks) - 1) / 2)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (high - min(high, max(low, value))) / (high - low)

    parts = [*_axes(shots, low, high, y), *_majority(result, y)]
    for model, template, variant in tracks:
        mine = [row for row in result.rows if (row.model, row.template, row.variant) == (model, template, variant)]
        mine.sort(key=lambda row: row.shots)
        points = " ".join(f"{x(row):.1f},{y(row.score.value):.1f}" for row in mine)
        kind = f"c{series.index((model, template)) % _COLOURS}" + (" variant" if variant != "plain" else "")
        parts.append(f'<g class="{kind}"><polyline points="{points}" fill="none"/>')
        parts += [_point(row, x(row), y) for row in mine] + ["</g>"]
    return (
        f'<svg viewBox="0 0 {_LEFT + _WIDTH + 8} {_TOP + _HEIGHT + 44}" role="img"'
        f' aria-label="{escape(result.metric)} against shots; the table below has the numbers">{"".join(parts)}</svg>'
    )


def _series(result: Result) -> list[Series]:
    return list(dict.fromkeys((row.model, row.template) for row in result.rows))


def _tracks(result: Result) -> list[tuple[str, str, str]]:
    """Model, template and variant of every line, with variants next to their plain line."""
    tracks = dict.fromkeys((row.model, row.template, row.variant) for row in result.rows)
    return sorted(tracks, key=lambda track: _series(result).index(track[:2]))


def _range(result: Result) -> tuple[float, float]:
    """The axis range: all finite intervals, and the most frequent label's accuracy, or 0."""
    values = [0.0 if result.majority is None else result.majority]
    for row in result.rows:
        values += [end for end in (row.score.low, row.score.value, row.score.high) if math.isfinite(end)]
    margin = 0.05 * (max(values) - min(values) or 1)
    return min(values) - margin, max(values) + margin


def _axes(shots: Sequence[int], low: float, high: float, y: Scale) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for index, count in enumerate(shots):
        middle = _LEFT + _WIDTH * (index + 0.5) / len(shots)
        parts.append(f'<text x="{middle:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 38}" text-anchor="middle">shots</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if (high - low) / step <= 7), 100)
    return [float(n * step) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _majority(result: Result, y: Scale) -> list[str]:
    if result.majority is None:
        return []
    height = y(result.majority)
    return [f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{height:.1f}" y2="{height:.1f}" class="majority"/>']


def _point(row: ResultRow, x: float, y: Scale) -> str:
    score = row.score
    said = f"{row.model}, {row.template}, {row.name}: {with_interval(score.value, score.low, score.high)}"
    said += f", {row.caveat}" if row.caveat else ""
    kind = "hollow" if row.caveat or row.one_set else "mark"
    return (
        f"<g><title>{escape(said)}</title>"
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(score.low):.1f}" y2="{y(score.high):.1f}"/>'
        f'<path d="{_mark(row.variant, x, y(score.value))}" class="{kind}"/></g>'
    )


_MARKS = {"plain": "●", "random labels": "■", "contextual": "▲", "batch": "◆"}  # of the legend; _mark seeds them


def _mark(variant: str, x: float, y: float) -> str:
    """The outline of a variant's mark around a point."""
    if variant == "plain":
        return f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
    if variant == "contextual":
        return f"M{x:.1f} {y - 5.5:.1f}l5 9h-10z"
    if variant == "batch":
        return f"M{x:.1f} {y - 5.5:.1f}l5 5.5l-5 5.5l-5 -5.5z"
    return f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z"


def legend(result: Result) -> str:
    """The meaning of the colours, marks, lines and whiskers in use."""
    if len(result.rows) == 1:
        return f'<p class="notes">{_whiskers(result)}</p>'
    series = _series(result) if len(_series(result)) > 1 else []
    keys = [(f"c{number % _COLOURS}", "●", _series_name(result, own)) for number, own in enumerate(series)]
    marks = list(dict.fromkeys(row.variant for row in result.rows))
    if len(marks) > 1:
        names = {"plain": "as the model answers", "random labels": "shots with random labels"}
        keys += [("", _MARKS.get(mark, "■"), names.get(mark, f"{mark} calibration")) for mark in marks]
    if any(row.caveat or row.one_set for row in result.rows):
        keys.append(("", "○", "hollow: too few few-shot seeds to stand for other shots"))
    if result.majority is not None:
        keys.append(("", "┄", "always the most frequent label"))
    items = "".join(
        f'<li><span class="key {kind}" aria-hidden="true">{mark}</span> {escape(name)}</li>'
        for kind, mark, name in keys
    )
    return f'<ul class="legend">{items}</ul><p class="notes">{_whiskers(result)}</p>'


def _series_name(result: Result, series: Series) -> str:
    return ", ".join(prefixes(*series, differing(_series(result))))


def _whiskers(result: Result) -> str:
    """What the intervals generalise to, and how they are computed."""
    clustered = ", clustered by group" if result.groups else ""
    several = len(result.rows) > 1
    parts = ["Whiskers are 95% intervals."] if several else []
    held = "they hold" if several else "the interval holds"
    if any(row.spread is not None for row in result.rows):
        parts.append(
            f"With several few-shot seeds {held} for other items and other seeds: Student's t on both errors"
            f" (components of variance, Satterthwaite's degrees of freedom{clustered})."
        )
    if any(row.spread is None for row in result.rows):
        scores = {score for row in result.rows for seed in row.scores for permutation in seed for score in permutation}
        wilson = scores <= {0.0, 1.0} and not result.groups
        way = "Wilson's interval" if wilson else f"Student's t{clustered}"
        parts.append(f"With one set of prompts {held} for other items, with the same prompts: {way}.")
    return " ".join(parts)
