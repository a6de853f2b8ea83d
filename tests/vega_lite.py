"""An independent view of a figure: Vega-Lite's own JSON schema, and the rows of data that its marks show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema

from nextword.plots import Spec, svg


def drawn(spec: Spec) -> str:
    """The figure as SVG, after its specification has been found valid."""
    errors = [f"{error.json_path}: {error.message[:300]}" for error in _schema().iter_errors(_shortened(spec))]
    assert not errors, errors[:3]
    return svg(spec)


def _shortened(part: Any) -> Any:
    """The specification with the first rows of its data only: all are of one kind."""
    if isinstance(part, list):
        return [_shortened(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {name: own[:3] if name == "values" else _shortened(own) for name, own in part.items()}


@cache
def _schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(
        json.loads(files("altair.vegalite.v6.schema").joinpath("vega-lite-schema.json").read_text())
    )


def views(spec: Spec) -> Iterator[Spec]:
    """The figure and all parts of it, down to those of one mark; a part inherits its parent's data."""
    yield spec
    for name in ("layer", "concat", "hconcat", "vconcat"):
        for part in spec.get(name, ()):
            yield from views({"data": spec.get("data"), **part})


def marks(spec: Spec, kind: str) -> list[Spec]:
    """The parts with marks of one kind, in order."""
    return [view for view in views(spec) if _kind(view.get("mark")) == kind]


def _kind(mark: Any) -> Any:
    return mark["type"] if isinstance(mark, dict) else mark


def column(view: Spec, name: str) -> list[Any]:
    """A field of a part's rows."""
    return [row.get(name) for row in view["data"]["values"]]


def texts(spec: Spec, name: str) -> list[str]:
    """The texts that a parameter holds."""
    (found,) = (each["value"] for each in spec["params"] if each["name"] == name)
    return list(found)
