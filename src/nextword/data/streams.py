"""Memory-mapped token files as one stream, with its document boundaries.

A document d1 … dn is stored as E d1 … dn, where E is the end-of-text token: every document begins with it, so that
its first token is learned as well. Targets are d1 after E, …, dn after dn-1, and E after dn, the document's end.
In the stream the E after dn is the one the next document begins with, so a single token between two documents is
both; if documents are separate (packed rows, document masks), the target after dn is E without reading it.

If parts of a document are held out, both splits have gaps. The text on each side of a gap is its own segment:
nothing is predicted across it, and nothing attends across it if documents are separate. There is no E at a gap,
since the document does not end there.

In a conversation only the assistant's turns are targets: the other tokens are read, and no E is learned after them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base import RunError

_MOST_OPEN = 256  # mapped files at a time: each holds a file descriptor

IGNORED = -100  # a target that the loss ignores, as in torch's cross-entropy

Part = Path | NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Segments:
    """Spans of contiguous text that partition the stream, in order."""

    starts: NDArray[np.int64]  # position of the first token
    lengths: NDArray[np.int64]
    ends: NDArray[np.bool_]  # whether its document ends with the segment's last token, and that is learned
    documents: NDArray[np.int64]  # the number of the document it is from
    flips: NDArray[np.int64]  # positions from which tokens are no targets, are targets again, are none, ...

    @classmethod
    def of(cls, lengths: ArrayLike, ends: ArrayLike, documents: ArrayLike, flips: ArrayLike = ()) -> Segments:
        """Segments from their lengths in tokens."""
        sizes, whole = np.asarray(lengths, np.int64), np.asarray(documents, np.int64)
        starts = np.cumsum(sizes) - sizes
        return cls(starts, sizes, np.asarray(ends, np.bool_), whole, np.asarray(flips, np.int64))

    def learned(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the tokens at `positions` are targets."""
        learned: NDArray[np.bool_] = np.searchsorted(self.flips, positions, side="right") % 2 == 0
        return learned


class TokenStream:
    """One split of a dataset: consecutive documents, each beginning with the end-of-text token."""

    def __init__(
        self,
        parts: Sequence[Part],
        lengths: Sequence[int],
        segments: Callable[[], Segments],
        dtype: str,
        end: int,
        bytes: int,
        fingerprint: str,
    ) -> None:
        """`lengths`: tokens per file; `segments` is called on first use."""
        self.tokens = sum(lengths)
        self.bytes = bytes  # of the text as UTF-8
        self.end = end  # the id of the end-of-text token
        self.fingerprint = fingerprint
        self._offsets = np.cumsum([0, *lengths])
        self._find_segments = segments

        @lru_cache(maxsize=_MOST_OPEN)
        def mapped(file: Path) -> NDArray[np.unsignedinteger]:
            return np.asarray(np.memmap(file, dtype, mode="r"))

        def part(number: int) -> NDArray[np.unsignedinteger]:
            found = parts[number]
            if not isinstance(found, Path):
                return found
            try:
                tokens = mapped(found)
                whole = min(tokens.nbytes, _size(found, tokens.nbytes)) >= lengths[number] * tokens.itemsize
            except (OSError, ValueError):  # it is gone, or empty
                whole = False
            if not whole:  # to read behind its end would kill the process
                raise RunError(f"{found} no longer holds its {lengths[number]:,} tokens; prepare the data again")
            return tokens

        self._part = part

    @classmethod
    def of(cls, documents: Sequence[ArrayLike], end: int, bytes: int | None = None) -> TokenStream:
        """An in-memory stream of complete documents, given without their leading end-of-text token."""
        arrays = [np.concatenate([[end], np.asarray(document, np.uint32)]).astype(np.uint32) for document in documents]
        segments = Segments.of([array.size for array in arrays], [True] * len(arrays), np.arange(len(arrays)))
        tokens = np.concatenate([*arrays, np.empty(0, np.uint32)])
        mark = sha256(tokens.tobytes() + segments.starts.tobytes()).hexdigest()
        size = tokens.size if bytes is None else bytes
        return cls([tokens], [tokens.size], lambda: segments, "<u4", end, size, mark)

    @cached_property
    def segments(self) -> Segments:
        """The segments of the stream."""
        return self._find_segments()

    @cached_property
    def documents(self) -> int:
        """The number of documents with text in this stream."""
        return len(np.unique(self.segments.documents))

    def segment_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the segment of each position."""
        return np.searchsorted(self.segments.starts, positions, side="right") - 1

    def following(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The targets of the tokens at `positions`: the next token of the text, the end-of-text token
        where the document ends, and `IGNORED` where the next token is not in this stream or no target."""
        targets = self.take((positions + 1) % self.tokens)
        segments, numbers = self.segments, self.segment_of(positions)
        last = positions == segments.starts[numbers] + segments.lengths[numbers] - 1
        targets[last] = np.where(segments.ends[numbers[last]], self.end, IGNORED)
        if segments.flips.size:  # the end of a document belongs to its last token
            targets[~segments.learned(np.where(last, positions, positions + 1))] = IGNORED
        return targets

    def spread(self, count: int, size: int) -> TokenStream:
        """`count` evenly spaced spans of `size` tokens, as an in-memory stream."""
        places = np.arange(count) * (self.tokens - size) // max(1, count - 1)
        positions = (places[:, None] + np.arange(size)).ravel()
        numbers = self.segment_of(positions)
        begins = np.flatnonzero((np.diff(positions, prepend=-2) != 1) | (np.diff(numbers, prepend=-1) != 0))
        lengths = np.diff(begins, append=positions.size)
        whole, last = self.segments, positions[begins + lengths - 1]
        of = numbers[begins]
        ends = whole.ends[of] & (last == whole.starts[of] + whole.lengths[of] - 1)
        flips = np.flatnonzero(np.diff(whole.learned(positions).astype(np.int8), prepend=1))
        segments = Segments.of(lengths, ends, whole.documents[of], flips)
        tokens = self.take(positions).astype(np.uint32)
        mark = sha256(tokens.tobytes() + segments.starts.tobytes()).hexdigest()
        size_of_text = round(self.bytes * positions.size / self.tokens)
        return TokenStream([tokens], [tokens.size], lambda: segments, "<u4", self.end, size_of_text, mark)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """`count` tokens from `start`. Raises IndexError beyond the stream."""
        if not 0 <= start <= start + count <= self.tokens:
            raise IndexError(f"tokens {start} to {start + count} of a stream of {self.tokens}")
        tokens, done = np.empty(count, np.int64), 0
        number = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while done < count:
            first = start + done - int(self._offsets[number])
            piece = self._part(number)[first : first + count - done]
            tokens[done : done + piece.size] = piece
            done, number = done + piece.size, number + 1
        return tokens

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens at `positions`, in their shape."""
        if len(self._offsets) == 2:
            return self._part(0)[positions].astype(np.int64)
        tokens = np.empty(positions.shape, np.int64)
        numbers = np.searchsorted(self._offsets, positions, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            tokens[here] = self._part(int(number))[positions[here] - self._offsets[number]]
        return tokens


def _size(file: Path, mapped: int) -> int:
    """The bytes of `file`; one that was deleted since it was mapped still has those."""
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return mapped
