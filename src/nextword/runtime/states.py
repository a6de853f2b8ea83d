"""States of a recurrent network, each after the last token written to its page."""

from __future__ import annotations

from ctypes import addressof

import numpy as np

from ..backend import Batch, Ids
from ..spec import ModelSpec
from .kv_cache import aligned_zeros
from .structures import BatchStruct, PlacementStruct, ScheduleStruct

STATE_PAGE_SIZE = 8  # a recurrent state is small compared with a token's keys and values


class States:
    """Hidden states and, for an LSTM, cells: float32 (layers, pages, width) each.

    A sequence continues from the page of the position before its first token, or from zeros at position 0; each page it
    writes gets the state after the last of its tokens.
    """

    rewindable = False

    def __init__(self, spec: ModelSpec, page_size: int = STATE_PAGE_SIZE) -> None:
        self.spec, self.page_size = spec, page_size
        self.kinds = 2 if spec.kind == "lstm" else 1
        self.page_bytes = self.kinds * spec.layers * spec.width * 4
        self.pages = 0

    def allocate(self, pages: int) -> None:
        """Memory for `pages` states."""
        shape = (self.kinds, self.spec.layers, pages, self.spec.width)
        self.pool = aligned_zeros((*shape, 4)).view(np.float32).reshape(shape)
        self.pages = pages

    def copy_page(self, source: int, target: int) -> None:
        self.pool[:, :, target] = self.pool[:, :, source]

    def place(self, batch: Batch, struct: BatchStruct) -> object:
        """Fill in which states the tokens read and write; returns what must live until the call ends."""
        spans = _spans(batch, self.page_size, self.pages)
        pointers = [array.ctypes.data for array in (*spans, *self.pool)]
        schedule = ScheduleStruct(len(spans[0]), len(batch.positions), self.pages, *pointers)
        struct.at = PlacementStruct(tokens=len(batch.positions))
        struct.schedule = addressof(schedule)
        return spans, schedule


def _spans(batch: Batch, page_size: int, pages: int) -> tuple[Ids, Ids, Ids, Ids]:
    """For each sequence, longest first: its first token, its length, and the page of its state before; -1: zeros.

    Also, for each token, the page that gets the state after it; -1: none. Every page is one of `pages`.
    """
    positions, sequences, tables = batch.positions, batch.sequences, batch.page_tables
    rows, width = tables.shape
    if not 0 <= sequences.min() <= sequences.max() < rows:
        raise ValueError("a sequence number outside the page tables")
    if not 0 <= positions.min() <= positions.max() < width * page_size:
        raise ValueError("a position outside the page tables")
    begins = np.diff(sequences, prepend=-1) != 0
    first = np.flatnonzero(begins)
    count = np.diff(first, append=len(sequences))
    order = np.argsort(-count, kind="stable")
    first, count = first[order], count[order]
    _check_adjacent(batch, first)

    page_index, offset = np.divmod(positions, page_size)
    ends = np.append(begins[1:], True) | (offset == page_size - 1)
    target = np.where(ends, tables[sequences, page_index], -1)
    start = positions[first]
    before = tables[sequences[first], (start - 1) // page_size]  # meaningless at position 0
    source = np.where(start > 0, before, -1)
    if not 0 <= target[ends].min() <= target.max() < pages:
        raise ValueError(f"a page outside the {pages}: {target[ends].min()} to {target.max()}")
    if (source >= pages).any() or (source[start > 0] < 0).any():
        raise ValueError(f"a page outside the {pages}: {source.min()} to {source.max()}")
    return first, count, source.astype(np.int64), target.astype(np.int64)


def _check_adjacent(batch: Batch, first: Ids) -> None:
    """Raise ValueError unless a sequence's tokens are next to each other, at consecutive positions."""
    steps = np.diff(batch.positions)
    steps[first[first > 0] - 1] = 1
    if (steps != 1).any() or len(np.unique(batch.sequences[first])) != len(first):
        raise ValueError("tokens of a sequence must be next to each other, at consecutive positions")
