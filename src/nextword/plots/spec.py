"""Vega-Lite specifications: what all figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .theme import LIGHT, Theme, vega_config

Spec = dict[str, Any]  # of Vega-Lite 6; every part that a reader may rely on is also valid in 5
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MIME = "application/vnd.vegalite.v5+json"  # what notebooks support
_SCHEMA_OF_MIME = "https://vega.github.io/schema/vega-lite/v5.json"
# Of a continuous scale, which needs real colours; these stand out from white and from the dark background.
RAMP = [LIGHT[name] for name in ("purple", "blue", "cyan", "orange")]


def figure(title: str, subtitle: str = "", **parts: Any) -> Spec:
    """A complete specification in the light theme, from its parts, such as `layer` or `hconcat`."""
    return {"$schema": SCHEMA, "config": vega_config(), "title": heading(title, subtitle)} | parts


def stacked(title: str, figures: Sequence[Spec]) -> Spec:
    """Complete figures below each other. Their parameters need different names."""
    own = {"$schema", "config", "params"}
    params = [parameter for each in figures for parameter in each.get("params", ())]
    parts = [{name: part for name, part in each.items() if name not in own} for each in figures]
    return figure(title, params=params, vconcat=parts, spacing=48)


def themed(spec: Spec, theme: Theme) -> Spec:
    """The figure in another theme."""
    return spec | {"config": vega_config(theme)}


def heading(title: str, subtitle: str = "", **more: Any) -> Spec:
    """A title. Text is shown as it is, on one line."""
    return {"text": _one_line(title), **({"subtitle": _one_line(subtitle)} if subtitle else {}), **more}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def named(name: str) -> Spec:
    """A colour of the theme."""
    return {"expr": name}


def field(name: str, title: str | None = None, kind: str = "quantitative", **more: Any) -> Spec:
    """An encoding of a field of the data; without `title`, Vega-Lite chooses one."""
    titled = {} if title is None else {"title": title}
    return {"field": name, "type": kind, **titled, **more}


def palette(count: int, names: Sequence[str]) -> Spec:
    """A scale for `count` series, numbered from 0, that cycles through the colours of `names`."""
    return {"domain": list(range(count)), "range": [named(names[number % len(names)]) for number in range(count)]}


def lookup(name: str, texts: Iterable[str]) -> Spec:
    """A parameter that holds the texts of numbered rows or series: labels are `{name}[datum.value]`.

    So text from outside is never part of an expression, and equal texts stay apart.
    """
    return {"name": name, "value": list(texts)}


def powers_of_ten(low: float, high: float) -> Spec:
    """The axis of a logarithmic scale: labelled at powers of ten, and between them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    values = [step * 10.0**power for power in exponents for step in steps]
    return {"values": [value for value in values if low <= value <= high]}


COUNT = "replace(format(datum.value, '~s'), 'G', 'B')"  # labels: 10M parameters, 1B tokens
POWER = "format(datum.value, '.0e')"


def numbers(rows: Iterable[Mapping[str, Any]]) -> Spec:
    """Rows as a figure's data; what is not finite is null, which is not drawn."""
    return {"values": [{name: _finite(value) for name, value in row.items()} for row in rows]}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mime_bundle(text: str, spec: Spec | None = None, html: str | None = None) -> dict[str, Any]:
    """What `_repr_mimebundle_` returns: a figure or a table for notebooks, and plain text."""
    bundle: dict[str, Any] = {"text/plain": text}
    if html is not None:
        bundle["text/html"] = html
    if spec is not None:
        bundle[MIME] = spec | {"$schema": _SCHEMA_OF_MIME}
    return bundle
