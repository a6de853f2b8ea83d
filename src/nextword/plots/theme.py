"""Colours and fonts of figures, pages and the terminal, on light and on dark."""

from __future__ import annotations

import math
from typing import Any, Literal

LIGHT = {
    "background": "#ffffff", "ink": "#1d2430", "grey": "#5b6678", "pale": "#dfe3ea",
    "blue": "#2272e2", "orange": "#d9781b", "green": "#277b4c",
    "red": "#d72920", "purple": "#9146a9", "cyan": "#369ebd",
}  # fmt: skip
DARK = {
    "background": "#14181f", "ink": "#e6e9ef", "grey": "#a3adbd", "pale": "#333c4a",
    "blue": "#5880fd", "orange": "#eca240", "green": "#78c396",
    "red": "#eb6956", "purple": "#ca8adb", "cyan": "#55d8f1",
}  # fmt: skip
SERIES = ("blue", "orange", "cyan", "red", "purple", "green")  # neighbours differ most under colour blindness
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', 'DejaVu Sans', sans-serif"
MONOSPACE = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
_HEAT = ("blue", "cyan", "green", "orange", "red")  # temperatures 1/4, 1/2, 1, 2, 4

Theme = Literal["light", "dark", "page"]
_PAGE = {name: f"var(--{name})" for name in LIGHT}
_THEMES: dict[Theme, dict[str, str]] = {"light": LIGHT, "dark": DARK, "page": _PAGE}


def heat(temperature: float) -> str:
    """The name of a temperature's colour, from blue to red."""
    return _HEAT[0 if temperature <= 0 else min(max(round(math.log2(temperature)) + 2, 0), len(_HEAT) - 1)]


def css() -> str:
    """The palette as CSS: `--background`, `--ink`, ..., `--font` and `--monospace`.

    A page follows the system, or `data-theme="light"` or `"dark"` on its root element.
    """
    light, dark = (f"color-scheme: {name}; {_properties(own)}" for name, own in (("light", LIGHT), ("dark", DARK)))
    fonts = f"--font: {FONT}; --monospace: {MONOSPACE};"
    return (
        f":root {{ {light} {fonts} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} }}\n"
    )


def _properties(own: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in own.items())


def vega_config(theme: Theme = "light") -> dict[str, Any]:
    """Vega-Lite's `config` for a theme: "page" takes the colours of the page, from `css`.

    Each colour is also a parameter, so that a specification names it: `{"expr": "blue"}`.
    """
    own = _THEMES[theme]
    text = {"labelColor": own["grey"], "titleColor": own["grey"], "titleFontWeight": "normal"}
    return {
        "params": [{"name": name, "value": colour} for name, colour in own.items()],
        "background": own["background"],
        "font": FONT,
        "padding": 12,
        "title": {"anchor": "start", "color": own["ink"], "subtitleColor": own["grey"], "fontSize": 14,
                  "subtitleFontSize": 11, "subtitlePadding": 5, "offset": 12},
        "axis": {**text, "domainColor": own["grey"], "tickColor": own["grey"], "gridColor": own["pale"],
                 "labelFontSize": 11, "titleFontSize": 12},
        "axisYQuantitative": {"labelFlush": True},  # so that panels side by side are of one height
        "legend": {**text, "labelFontSize": 11, "titleFontSize": 12, "labelLimit": 300, "titleLimit": 300,
                   "columnPadding": 24},
        "header": {**text, "labelColor": own["ink"]},
        "view": {"stroke": None},
        "range": {"category": [own[name] for name in SERIES]},
        "mark": {"color": own["blue"]},
        "rule": {"color": own["grey"]},
        "text": {"color": own["ink"], "fontSize": 11},
    }  # fmt: skip
