"""A table that fits its console: it leaves out whole columns rather than break what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Column, Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_GAP = 2  # characters between columns
_WIDE = 10_000  # characters: no cell is measured narrower than it is
_LONGEST_WORD = 24  # characters; a longer one, such as a path, goes on in the next line
_NARROWEST = 8  # characters that are left of a name


class FittingTable(Table):
    """A table without lines, whose columns at the places `least` go where the console is too narrow, first ones first.

    Where even the others do not fit, the first column, which holds names, is cut.
    """

    def __init__(self, least: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        self.least = least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = [self._needed(console, options, column) for column in self.columns]
        kept = list(range(len(self.columns)))
        for group in self.least:
            if _sum(needed, kept) <= options.max_width:
                break
            kept = [place for place in kept if place not in group]
        shown = copy(self)
        shown.columns = [copy(self.columns[place]) for place in kept]
        for number, column in enumerate(shown.columns):
            column._index = number
        if (excess := _sum(needed, kept) - options.max_width) > 0:
            shown.columns[0].max_width = max(_NARROWEST, needed[0] - excess)
        left_out = [str(self.columns[place].header) for place in range(len(self.columns)) if place not in kept]
        if any(left_out):
            shown.caption, shown.caption_justify, shown.caption_style = _remark(left_out), "left", "dim"
        yield from Table.__rich_console__(shown, console, options)

    def _needed(self, console: Console, options: ConsoleOptions, column: Column) -> int:
        """Characters without which the column would be broken: its longest cell, or its longest word if it wraps."""
        cells = [column.header, *column.cells] if self.show_header else [*column.cells]
        measured = [Measurement.get(console, options.update(max_width=_WIDE), cell) for cell in cells]
        if column.no_wrap:
            return max((each.maximum for each in measured), default=0)
        return min(max((each.minimum for each in measured), default=0), _LONGEST_WORD)


def _sum(needed: Sequence[int], kept: Sequence[int]) -> int:
    return sum(needed[place] for place in kept) + _GAP * (len(kept) - 1)


def _remark(left_out: Sequence[str]) -> str:
    return f"not shown, for want of room: {', '.join(dict.fromkeys(filter(None, left_out)))}"
