"""report.html: what a sweep found, in figures, sentences and tables; one file that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from ..base import installed, units
from ..plan.plots import kinds_figure, residual_figure, sweep_figure
from ..plan.sweep_checks import LeftOut, law_of_cells
from ..plots import Spec, css, svg
from ..plots.scaling import Line
from ..plots.sweep import curves
from ..spec import ModelKind
from .report import Findings, assumptions, sentences
from .sweep import Sweep
from .table import Row

REPORT = "report.html"
_STYLE = """
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; color: var(--ink); background: var(--background);
  font: 15px/1.5 var(--font); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } .notes { color: var(--grey); }
figure, .scroll { margin: 0 0 1rem; overflow-x: auto; } svg { overflow: visible; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid var(--pale); }
th:first-child, td:first-child { text-align: left; }
"""


def report_page(sweep: Sweep, found: Findings) -> str:
    """The page's HTML; without vl-convert it has no figures."""
    title = f"Scaling law: {', '.join(sweep.place.sources)}"
    parts = [f"<h1>{escape(title)}</h1>", _list(sentences(sweep, found), "")]
    parts += [f"<figure>{drawn}</figure>" for drawn in _figures(sweep, found)]
    parts += ["<h2>What it rests on</h2>", _list(assumptions(sweep, found), "notes")]
    parts += ["<h2>Runs</h2>", _table(sweep.rows())]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css()}{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def figures(sweep: Sweep, found: Findings) -> Iterator[Spec]:
    """The parabolas, best sizes and frontier of each kind, its surface, all frontiers, and the learning-rate scans."""
    for kind, law in found.laws.items():
        if not law.problem:
            yield sweep_figure(law.runs, law.scaling, _held_out(found, kind), f"{kind}: ")
        if (by := law_of_cells(law.runs)) is not None:
            yield residual_figure(law.runs, law.scaling, by, f"{kind}: ")
    kinds = kinds_figure({kind: law.scaling for kind, law in found.laws.items()})
    if kinds is not None:
        yield kinds
    scans = [line for kind in sweep.design.kinds for line in _scans(sweep, kind)]
    if scans:
        yield curves(scans, "learning rates", "learning rate", "bits/byte")


def _figures(sweep: Sweep, found: Findings) -> list[str]:
    return [svg(figure, "page") for figure in figures(sweep, found)] if installed("vl_convert") else []


def _held_out(found: Findings, kind: ModelKind) -> LeftOut | None:
    """The hold-out run, as the figure shows a budget that was predicted."""
    held = found.hold_out
    if held is None or held.row.cell.kind != kind:
        return None
    return LeftOut(held.row.cell.flops, held.predicted, held.row.loss)


def _scans(sweep: Sweep, kind: ModelKind) -> Iterator[Line]:
    rows = [sweep.row(cell) for cell in sweep.rate_cells(kind)]
    for size in dict.fromkeys(row.cell.size for row in rows):
        points = sorted((row.cell.rate, row.loss) for row in rows if row.cell.size == size and row.status == "done")
        if points:
            yield Line(f"{kind}, M {units.compact_count(size)}", points)


def _list(lines: Iterable[str], style: str) -> str:
    return f'<ul class="{style}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def _table(rows: Sequence[Row]) -> str:
    heads = ("run", "kind", "M", "tokens", "FLOPs", "steps", "learning rate", "bits/byte", "state")
    body = "".join(_cells("td", _shown(row)) for row in rows)
    head = _cells("th", heads)
    return f'<div class="scroll" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _shown(row: Row) -> tuple[str, ...]:
    cell = row.cell
    loss = f"{row.loss:.4f}" if math.isfinite(row.loss) else ""
    state = f"{row.status}: {row.reason}" if row.reason else row.status
    return (
        cell.role, cell.kind, units.format_count(cell.size), units.format_count(cell.tokens), f"{cell.flops:.3g}",
        f"{cell.steps:,}", f"{cell.rate:g}", loss, state,
    )  # fmt: skip


def _cells(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
