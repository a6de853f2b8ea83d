"""How a plan is printed: sections of text and tables, worked formulas, or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..base import units
from ..plan import Figure
from ..plan.figure import plain
from ._console import draws_unicode, emit_json, output
from ._table import plain_table

_BAR = 24  # characters


@dataclass(frozen=True)
class Section:
    """What is printed, if anything, and the figures that --explain works out under `title`."""

    body: RenderableType | None = None
    title: str = ""
    figures: Sequence[Figure] = ()


def emit(result: Any, sections: Callable[[], Iterable[Section]], *, as_json: bool, explain: bool) -> None:
    """Print `result` as JSON, or its sections; with `explain`, then also every figure with its formula."""
    if as_json:
        emit_json(plain(result))
        return
    console, shown = output(), list(sections())
    for section in shown:
        if section.body is not None:
            console.print(section.body)
    if explain:
        console.print()
        for section in shown:
            if section.figures:
                _explain(section, console)


def line(text: str, style: str = "") -> Section:
    return Section(Text(text, style))


def warning(text: str) -> Section:
    return line(f"! {text}", "yellow")


def formulas(title: str, figures: Sequence[Figure]) -> Section:
    """Figures shown only by --explain."""
    return Section(None, title, figures)


def facts(title: str, rows: Iterable[Sequence[str]], figures: Sequence[Figure] = ()) -> Section:
    """Rows of a name and its description, under a heading."""
    table = plain_table("", "", right=False)
    for name, *cells in rows:
        table.add_row(f"  {name}", *cells)
    return Section(_headed(title, table), title, figures)


def bars(title: str, parts: Sequence[Figure]) -> Section:
    """Figures with a share and a bar each, and their sum."""
    table = plain_table("", "", "", "", least=((3,),))
    table.columns[3].justify = "left"
    total = sum(part.value for part in parts)
    block = "█" if draws_unicode(output()) else "#"
    for part in parts:
        share = part.value / total if total else 0
        bar = block * max(1, round(_BAR * share)) if part.value else ""
        table.add_row(f"  {part.name}", units.format_quantity(part.value, part.unit), f"{share:.1%}", bar)
    table.add_row("  total", units.format_quantity(total, parts[0].unit if parts else ""), "", "", style="bold")
    return Section(_headed(title, table), title, parts)


def _headed(title: str, table: Table) -> Group:
    table.show_header = False
    return Group(Text(title, "bold"), table)


def _explain(section: Section, console: Console) -> None:
    """For each figure: formula, formula with values, value and source."""
    console.print(section.title, style="bold")
    for figure in section.figures:
        unit = f" {figure.unit}" if figure.unit else ""
        console.print(f"  {figure.name} = {_exact(figure.value)}{unit}", soft_wrap=True)
        symbolic, filled = figure.symbolic(), figure.filled()
        if symbolic != filled:
            console.print(f"      = {symbolic}", style="dim", soft_wrap=True)
        console.print(f"      = {filled}", style="dim", soft_wrap=True)
        if figure.source:
            console.print(f"      {figure.source}", style="dim italic", soft_wrap=True)
    console.print()


def _exact(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.6g}" if abs(value) < 1e12 else f"{value:.6g}"
