"""Batches of windows of a token stream, as a function of seed and step only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .order import number_from, permute
from .packing import pack
from .streams import IGNORED, TokenStream

Packing = Literal["stream", "best-fit"]


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and their targets; `documents` numbers the document segments of a row from 0.

    Ignored targets are -100. `documents` is None if attention crosses documents; padding has its own number.
    """

    inputs: NDArray[np.int64]  # (rows, context)
    targets: NDArray[np.int64]  # (rows, context)
    documents: NDArray[np.int32] | None  # (rows, context)


class Windows:
    """All windows of `context` inputs of a stream, reshuffled each epoch.

    "stream": consecutive documents, cut every `context` tokens from an offset that changes with the epoch, wrapping
    around at the end. "best-fit": complete documents packed into rows (packing.py), with padding.

    Either way, each token of a document and its end is a target once per epoch (see streams.py), except for a
    remainder of the stream shorter than a window. With `mask_documents`, batches number the segments of a row, and no
    token is predicted from another document.

    Raises UsageError if the stream is shorter than a window, and later if it is shorter than a batch.
    """

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        seed: int,
        packing: Packing = "stream",
        mask_documents: bool = False,
    ) -> None:
        if context < 1:
            raise UsageError(f"a window needs a context of at least one token, not {context}")
        if packing not in ("stream", "best-fit"):
            raise UsageError(f"packing {packing!r} is not known. Known: stream, best-fit")
        if stream.tokens <= context:
            raise UsageError(
                f"the text has {stream.tokens:,} tokens; one window of context {context} needs at least"
                f" {context + 1:,}. Give more text, or a shorter context"
            )
        self.stream, self.context, self.seed = stream, context, seed
        self.mask_documents = mask_documents
        self._pieces = pack(stream.segments, context) if packing == "best-fit" else None
        if self._pieces is not None and not self._pieces.count:
            raise UsageError("no document of the text has two tokens, so there is nothing to predict. Give more text")

    @property
    def count(self) -> int:
        """The number of windows per epoch."""
        return self._pieces.count if self._pieces else self.stream.tokens // self.context

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """Process `rank`'s share (of `world`) of the batch of `size` rows at `step`, counted from 0.

        Sample i = step * size + row belongs to epoch i // count, and is its window permute(i % count), so that samples
        do not depend on the number of processes.
        """
        self._check(size, self.count, world)
        own = size // world
        samples = step * size + rank * own + np.arange(own)
        epochs, places = np.divmod(samples, self.count)
        windows, offsets = np.empty(own, np.int64), np.empty(own, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            windows[here] = permute(places[here], self.count, (self.seed, epoch))
            offsets[here] = self._offset(epoch)
        if self._pieces:
            return self._packed(windows)
        return self._cut(offsets + windows * self.context)

    @property
    def rows_in_order(self) -> int:
        """The number of rows of `in_order` that cover the stream."""
        return self._pieces.count if self._pieces else -(-self.stream.tokens // self.context)

    def in_order(self, rows: NDArray[np.int64]) -> tuple[Batch, NDArray[np.int64]]:
        """A batch of the given rows in order, and the position of every input; each target occurs in exactly one row.

        For evaluation: the targets counted depend neither on the seed nor on the context or packing.
        """
        if self._pieces:
            return self._packed(rows), self._packed_positions(rows)
        starts = np.minimum(rows * self.context, self.stream.tokens - self.context)
        batch = self._cut(starts)
        batch.targets[np.arange(self.context) < (rows * self.context - starts)[:, None]] = IGNORED  # previous row
        return batch, starts[:, None] + np.arange(self.context)

    def lane_steps(self, size: int) -> int:
        """Steps until `sequential_batch` has read the stream once."""
        return self.stream.tokens // (size * self.context)

    def sequential_batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """As `batch`, for training with carried state: each row continues where it ended in the previous step.

        Row i reads the i-th of `size` equal parts of the stream in `lane_steps` steps, which is an epoch, then restarts
        at the next epoch's offset. Packing does not apply.
        """
        self._check(size, self.stream.tokens // self.context, world)
        own, steps = size // world, self.lane_steps(size)
        epoch, place = divmod(step, steps)
        lanes = rank * own + np.arange(own)
        return self._cut(self._offset(epoch) + (lanes * steps + place) * self.context)

    def _offset(self, epoch: int) -> int:
        return number_from(("offset", self.seed, epoch), self.context)

    def _check(self, size: int, count: int, world: int) -> None:
        if size < 1 or size % world:
            raise UsageError(f"a batch of {size} rows does not divide among {world} processes")
        if size > count:
            raise UsageError(
                f"the text has {self.stream.tokens:,} tokens, {count:,} rows of {self.context}; one batch of {size}"
                f" rows needs at least {size * self.context:,} tokens. Give more text, a smaller batch or a shorter"
                " context"
            )

    def _cut(self, starts: NDArray[np.int64]) -> Batch:
        """Rows that begin at `starts` of the stream, which wraps around."""
        positions = (starts[:, None] + np.arange(self.context)) % self.stream.tokens
        inputs, targets = self.stream.take(positions), self.stream.following(positions)
        if not self.mask_documents:
            return Batch(inputs, targets, None)
        begins = positions == self.stream.segments.starts[self.stream.segment_of(positions)]
        begins[:, 0] = False
        return Batch(inputs, targets, np.cumsum(begins, axis=1, dtype=np.int32))

    def _packed(self, rows: NDArray[np.int64]) -> Batch:
        assert self._pieces is not None
        pieces, positions = self._pieces, self._packed_positions(rows)
        filled = positions >= 0
        inputs = np.full(positions.shape, self.stream.end, np.int64)
        targets = np.full(positions.shape, IGNORED, np.int64)
        inputs[filled] = self.stream.take(positions[filled])
        targets[filled] = self.stream.following(positions[filled])
        if not self.mask_documents:
            return Batch(inputs, targets, None)
        documents = np.zeros(positions.shape, np.int32)
        for row, (begin, end) in enumerate(
            zip(pieces.rows[rows].tolist(), pieces.rows[rows + 1].tolist(), strict=True)
        ):
            documents[row, : filled[row].sum()] = np.repeat(np.arange(end - begin), pieces.lengths[begin:end])
            documents[row, filled[row].sum() :] = end - begin
        return Batch(inputs, targets, documents)

    def _packed_positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position in the stream of each input of packed rows; -1 for padding."""
        assert self._pieces is not None
        pieces = self._pieces
        positions = np.full((len(rows), self.context), -1, np.int64)
        for row, (begin, end) in enumerate(
            zip(pieces.rows[rows].tolist(), pieces.rows[rows + 1].tolist(), strict=True)
        ):
            lengths = pieces.lengths[begin:end]
            before = np.cumsum(lengths) - lengths
            used = int(lengths.sum())
            positions[row, :used] = np.repeat(pieces.starts[begin:end] - before, lengths) + np.arange(used)
        return positions
