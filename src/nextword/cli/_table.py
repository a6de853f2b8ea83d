"""A table that fits its console: it drops whole columns rather than break cells."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult

_GAP = 2  # characters between columns
_WIDE = 10_000  # characters: no cell is measured narrower than it is
_LONGEST_WORD = 24  # characters; a longer one, such as a path, wraps
_NARROWEST = 8  # characters kept of a shortened name


def plain_table(
    *columns: str,
    right: bool = True,
    left: int = 1,
    wraps: Sequence[int] | None = None,
    least: Sequence[tuple[int, ...]] = (),
    names: Sequence[int] = (0,),
) -> FittingTable:
    """A table without lines; the first `left` columns are left-aligned, the others right-aligned.

    The columns `wraps` hold text and wrap; without `right`, all but the first do. Others
    never break: if the console is too narrow, the groups of columns in `least` are left out, the first of
    them first, and named below the table. If that is not enough, the columns `names` are shortened.
    """
    if wraps is None:
        wraps = () if right else range(1, len(columns))
    table = FittingTable(least, names)
    for number, name in enumerate(columns):
        justify: JustifyMethod = "right" if right and number >= left else "left"
        table.add_column(name, justify=justify, no_wrap=number not in wraps, overflow="fold")
    return table


class FittingTable(Table):
    """A table without lines that drops the columns `least`, first ones first, if the console is too narrow.

    If the others still do not fit, the columns `names` wrap, with the middle of long words left out; then further
    columns are dropped, the last ones first.
    """

    def __init__(self, least: Sequence[tuple[int, ...]] = (), names: Sequence[int] = (0,)) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        self.least, self.names = least, names

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = {index: self._needed(console, options, column) for index, column in enumerate(self.columns)}
        narrow = {index: min(width, _NARROWEST) for index, width in needed.items() if self._is_name(index)}
        kept = _fitting(needed, self.least, options.max_width)
        kept = _fitting(kept | {index: narrow[index] for index in narrow if index in kept},
                        [(index,) for index in sorted(kept, reverse=True)[:-1]], options.max_width)  # fmt: skip
        widths = _widened(kept, needed, options.max_width)
        shown = copy(self)
        shown.columns = [copy(self.columns[index]) for index in kept]
        for number, (index, column) in enumerate(zip(kept, shown.columns, strict=True)):
            column._index = number
            if widths[index] < needed[index]:
                _shorten(column, widths[index], "..." if options.ascii_only else "…")
        yield from Table.__rich_console__(shown, console, options)
        if left_out := [head for index, head in enumerate(self._heads()) if head and index not in kept]:
            yield Text(f"left out (narrow terminal): {', '.join(left_out)}", style="dim")

    def _heads(self) -> list[str]:
        """The columns' heads; a repeated one, such as "95%", is prefixed with the head before it."""
        heads = [str(column.header) for column in self.columns]
        return [
            f"{heads[index - 1]} {head}" if head and heads.count(head) > 1 else head for index, head in enumerate(heads)
        ]

    def _is_name(self, index: int) -> bool:
        return index in self.names and self.columns[index].no_wrap

    def _needed(self, console: Console, options: ConsoleOptions, column: Column) -> int:
        """The column's minimum width: its longest cell, or its longest word if it wraps."""
        cells = [column.header, *column.cells] if self.show_header else [*column.cells]
        measured = [Measurement.get(console, options.update(max_width=_WIDE), cell) for cell in cells]
        if column.no_wrap:
            return max((size.maximum for size in measured), default=0)
        return min(max((size.minimum for size in measured), default=0), _LONGEST_WORD)


def _fitting(widths: dict[int, int], groups: Sequence[tuple[int, ...]], room: int) -> dict[int, int]:
    """Columns with their widths, dropping as many of the first `groups` as needed to fit."""
    kept = dict(widths)
    for group in groups:
        if _sum(kept) <= room:
            break
        kept = {index: width for index, width in kept.items() if index not in group}
    return kept


def _widened(kept: dict[int, int], needed: dict[int, int], room: int) -> dict[int, int]:
    """Give the remaining width to the narrowest of the columns that need more."""
    widths = dict(kept)
    for _ in range(room - _sum(kept)):
        short = [index for index in widths if widths[index] < needed[index]]
        if not short:
            break
        widths[min(short, key=widths.__getitem__)] += 1
    return widths


def _shorten(column: Column, width: int, mark: str) -> None:
    """Let a column of names wrap."""
    column.no_wrap, column.width = False, width
    column.header = _shortened(str(column.header), width, mark)
    column._cells = [_shortened(cell, width, mark) if isinstance(cell, str) else cell for cell in column._cells]


def _shortened(text: str, width: int, mark: str) -> str:
    """`text` with the middle of words longer than `width` left out."""
    return " ".join(
        word if cell_len(word) <= width else _cut(word, width - len(mark), mark) for word in text.split(" ")
    )


def _cut(word: str, width: int, mark: str) -> str:
    head = set_cell_size(word, width // 2)
    return head + mark + set_cell_size(word[::-1], width - cell_len(head))[::-1]


def _sum(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)
