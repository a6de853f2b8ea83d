"""The distribution of the next token: bars, one panel per temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .spec import Spec, field, figure, heading, lookup, named, numbers
from .theme import MONOSPACE

_WIDTH, _STEP = 190, 20  # of a panel and of a row, pixels
_ABREAST = 4
_PIXELS = 6.2  # of a character of a value
_LONGEST_TITLE = 90  # characters


@dataclass(frozen=True)
class Share:
    """A probability, None where it is not known, and as text."""

    value: float | None
    text: str


@dataclass(frozen=True)
class Column:
    """One temperature's probabilities of the tokens, and of all others together. `colour` is the theme's."""

    title: str
    summary: str
    colour: str
    shares: Sequence[Share]
    others: Share


def next_tokens(prompt: str, tokens: Sequence[str], columns: Sequence[Column]) -> Spec:
    """Bars of the next token's probabilities on one scale, `tokens` down the side.

    The bar of all others may be far longer than any token's: it is cut off at the edge; its label has the number.
    """
    full = max((share.value for own in columns for share in own.shares if share.value is not None), default=1.0) or 1.0
    panels = [_panel(own, len(tokens), full, number % _ABREAST == 0) for number, own in enumerate(columns)]
    title = prompt if len(prompt) <= _LONGEST_TITLE else "…" + prompt[1 - _LONGEST_TITLE :]
    shared: Spec = {"params": [lookup("tokens", [*tokens, "others"])], "columns": _ABREAST}
    return figure(title, concat=panels, **shared, spacing={"row": 24, "column": 16})


def _panel(column: Column, count: int, full: float, labelled: bool) -> Spec:
    edge = full * 1.35
    shares = [*column.shares, column.others]
    rows = [_row(number, share, number == count, edge) for number, share in enumerate(shares)]
    others, colour = f"datum.row == {count}", named(column.colour)
    axis: Spec = {
        "labelExpr": "tokens[datum.value]", "labelFont": MONOSPACE, "labelFontSize": 12, "labelLimit": 220,
        "labelColor": named("ink"), "title": None, "ticks": False, "domain": False, "labelPadding": 6,
    }  # fmt: skip
    x: Spec = {"scale": {"domain": [0, edge], "nice": False}, "axis": None}
    bar: Spec = {
        "mark": {"type": "bar", "height": {"band": 0.74}},
        "encoding": {
            "x": field("drawn", **x),
            "color": {"condition": {"test": others, "value": named("pale")}, "value": colour},
            "stroke": {"condition": {"test": others, "value": named("grey")}, "value": None},
            "tooltip": [field("probability", "probability", format=".6f")],
        },
    }
    text = {
        "mark": {"type": "text", "align": "left", "dx": 5},
        "encoding": {"x": field("at", **x), "text": field("text", kind="nominal")},
    }
    return {
        "title": heading(column.title, column.summary, color=colour, fontSize=13, offset=8),
        "width": _WIDTH, "height": {"step": _STEP}, "data": numbers(rows), "layer": [bar, text],
        "encoding": {"y": field("row", kind="ordinal", axis=axis if labelled else None)},
    }  # fmt: skip


def _row(number: int, share: Share, others: bool, edge: float) -> dict[str, Any]:
    value = share.value or 0.0
    text = share.text + (" →" if others and value > edge else "")
    room = edge * (1 - (_PIXELS * len(text) + 5) / _WIDTH)  # beyond it the text stands inside the bar
    return {
        "row": number, "probability": share.value, "drawn": min(value, edge), "at": value if value <= room else 0.0,
        "text": text,
    }  # fmt: skip
