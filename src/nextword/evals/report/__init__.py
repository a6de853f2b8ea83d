"""The HTML report: a plot of the scores, comparisons, and every example with its prompt; self-contained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ...base import RunError, installed
from ...base.files import atomic_write
from ...plots import css, svg
from ...plots.files import hash_source, script_json
from ..plots import shots_figure
from ..results import Collected
from ..summary import Result
from . import tables
from .data import embedded

if TYPE_CHECKING:
    from ..served import EvalModel

_ASSETS = Path(__file__).parent


def write_report(path: Path, collected: Collected, result: Result, models: Mapping[str, EvalModel]) -> None:
    """Write the page to `path`; `models` by name decode token ids. Raises RunError if that fails."""
    page = report_page(collected, result, models)
    try:
        with atomic_write(path) as file:
            file.write(page)
    except OSError as error:
        raise RunError(f"{path}: the report could not be written ({error.strerror or error})") from error


def report_page(collected: Collected, result: Result, models: Mapping[str, EvalModel]) -> str:
    """The page's HTML."""
    data = embedded(collected, models)
    style, script = css() + _asset("page.css"), _asset("examples.js") + _asset("page.js")
    parts = {
        "title": escape(f"{result.task}: {result.metric}"),
        "policy": _policy(style, script),
        "lead": tables.lead(result),
        "curve": _curve(result),
        "table": tables.table(result),
        "requirements": tables.requirements(result),
        "comparisons": tables.comparisons(result),
        "confusion": tables.confusions(collected, result),
        "notes": tables.notes(result),
        "provenance": tables.how_measured(result.provenance),
        "left_out": tables.left_out(len(data["items"]), data["left_out"]),
        "style": style,
        "script": script,
        "data": script_json(data),
    }
    chunks = re.split(r"<!-- (\w+) -->", _asset("page.html"))
    page = "".join(parts[chunk] if index % 2 else chunk for index, chunk in enumerate(chunks))
    return page.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair, from a row, has no UTF-8


def _curve(result: Result) -> str:
    """The plot of the scores, if there are several and vl-convert is installed."""
    if len(result.rows) == 1 or not installed("vl_convert"):
        return ""
    inside = tables.scrolling("plot of scores against shots", svg(shots_figure(result), "page"))
    return f'<figure class="curve">{inside}</figure>'


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy: nothing is loaded, and only the page's own style and script are allowed."""
    return (
        f"default-src 'none'; style-src {hash_source(style)}; script-src {hash_source(script)}; base-uri 'none';"
        " form-action 'none'"
    )
