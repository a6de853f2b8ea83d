"""Best-fit packing of documents into rows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .streams import Segments

_TOGETHER = 1 << 16  # pieces packed at a time; more would barely improve the fill


def best_fit(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's lengths at most `capacity` together.

    Best-fit decreasing (Johnson 1974): the longest first, each into the row where it leaves the least space. Rows are
    in the order they were started, so the last ones are usually not full. Raises ValueError for a length outside
    1…capacity.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= sizes.min() <= sizes.max() <= capacity:
        raise ValueError(f"lengths to pack must lie between 1 and the capacity {capacity}")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows, by the room they have
    rooms = 0  # bit r is set where with_room[r] has a row
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1  # the least room that is enough
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)
    return rows


@dataclass(frozen=True)
class Pieces:
    """Pieces of documents in rows: row r has the pieces rows[r] to rows[r + 1].

    A piece is `lengths` inputs from position `starts` of the stream, each with its `TokenStream.following` target.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.rows) - 1


def pack(segments: Segments, context: int) -> Pieces:
    """Pack segments, cut to at most `context`, best-fit into rows of `context` inputs.

    A segment's last token is an input only if its document ends there; otherwise the next token is unknown.
    """
    inputs = segments.lengths - ~segments.ends
    cuts = -(-inputs // context)
    first = np.repeat(np.cumsum(cuts) - cuts, cuts)
    within = (np.arange(cuts.sum()) - first) * context  # where in its document a piece begins
    starts = np.repeat(segments.starts, cuts) + within
    lengths = np.minimum(np.repeat(inputs, cuts) - within, context)
    order, sizes = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
    for begin in range(0, len(lengths), _TOGETHER):
        rows = best_fit(lengths[begin : begin + _TOGETHER], context)
        order.append(np.concatenate([np.asarray(row) for row in rows]) + begin)
        sizes.append(np.fromiter(map(len, rows), np.int64, len(rows)))
    placed = np.concatenate(order)
    return Pieces(np.cumsum(np.concatenate(sizes)), starts[placed], lengths[placed])
