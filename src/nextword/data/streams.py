"""Tokens that lie in several memory-mapped files, read as one stream; where its documents begin and end.

A document d1 … dn is written as E d1 … dn, E being the end-of-text token: every document begins with it, so its first
token is learnt as well. What is predicted is d1 behind E, …, dn behind dn-1, and E behind dn: that the document ends.
In the stream the E behind dn is the one that the next document begins with, so one token between two documents is both;
where documents are kept apart (packed rows, masks within documents) the target behind dn is E without being read.

Where parts of a document are held out, both sides have gaps. The text on each side of a gap is its own segment: nothing
is predicted across it, and nothing looks across it where documents are kept apart. No E is put there: the document does
not end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_OPEN = 256  # mapped files at a time: each holds a file descriptor

IGNORED = -100  # a target that the loss does not count, as torch's cross-entropy has it

Part = Path | NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Segments:
    """Stretches of uninterrupted text, in the order of the stream, which they fill."""

    starts: NDArray[np.int64]  # of each its first token's position
    lengths: NDArray[np.int64]
    ends: NDArray[np.bool_]  # whether the segment's last token is the last of its document
    documents: NDArray[np.int64]  # the number of the document it is from

    @classmethod
    def of(cls, lengths: ArrayLike, ends: ArrayLike, documents: ArrayLike) -> Segments:
        """From their lengths in tokens."""
        sizes = np.asarray(lengths, np.int64)
        return cls(np.cumsum(sizes) - sizes, sizes, np.asarray(ends, np.bool_), np.asarray(documents, np.int64))


class TokenStream:
    """One side of a dataset: its documents one after the other, each beginning with the end-of-text token."""

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
        """`lengths` are the tokens of each part; `segments` is called when first needed."""
        self.tokens = sum(lengths)
        self.bytes = bytes  # of the text as UTF-8
        self.end = end  # the id of the end-of-text token
        self.fingerprint = fingerprint
        self._offsets = np.cumsum([0, *lengths])
        self._find_segments = segments

        @lru_cache(maxsize=_MOST_OPEN)
        def part(number: int) -> NDArray[np.unsignedinteger]:
            found = parts[number]
            return np.asarray(np.memmap(found, dtype, mode="r")) if isinstance(found, Path) else found

        self._part = part

    @classmethod
    def of(cls, documents: Sequence[ArrayLike], end: int, bytes: int | None = None) -> TokenStream:
        """A stream in memory of whole documents; their tokens are given without the mark before them."""
        arrays = [np.concatenate([[end], np.asarray(document, np.uint32)]).astype(np.uint32) for document in documents]
        segments = Segments.of([array.size for array in arrays], [True] * len(arrays), np.arange(len(arrays)))
        tokens = np.concatenate([*arrays, np.empty(0, np.uint32)])
        mark = sha256(tokens.tobytes() + segments.starts.tobytes()).hexdigest()
        size = tokens.size if bytes is None else bytes
        return cls([tokens], [tokens.size], lambda: segments, "<u4", end, size, mark)

    @cached_property
    def segments(self) -> Segments:
        """Where text begins and ends."""
        return self._find_segments()

    @cached_property
    def documents(self) -> int:
        """Documents of which some text is here."""
        return len(np.unique(self.segments.documents))

    def segment_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the segment of each position."""
        return np.searchsorted(self.segments.starts, positions, side="right") - 1

    def following(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is to be predicted behind the tokens at `positions`: the next token of the text, the end-of-text token
        where the document ends, `IGNORED` where what follows is not here."""
        targets = self.take((positions + 1) % self.tokens)
        segments, numbers = self.segments, self.segment_of(positions)
        last = positions == segments.starts[numbers] + segments.lengths[numbers] - 1
        targets[last] = np.where(segments.ends[numbers[last]], self.end, IGNORED)
        return targets

    def spread(self, count: int, size: int) -> TokenStream:
        """`count` stretches of `size` tokens, spread evenly, as a stream of their own in memory."""
        places = np.arange(count) * (self.tokens - size) // max(1, count - 1)
        positions = (places[:, None] + np.arange(size)).ravel()
        numbers = self.segment_of(positions)
        begins = np.flatnonzero((np.diff(positions, prepend=-2) != 1) | (np.diff(numbers, prepend=-1) != 0))
        lengths = np.diff(begins, append=positions.size)
        whole, last = self.segments, positions[begins + lengths - 1]
        of = numbers[begins]
        ends = whole.ends[of] & (last == whole.starts[of] + whole.lengths[of] - 1)
        segments = Segments.of(lengths, ends, whole.documents[of])
        tokens = self.take(positions).astype(np.uint32)
        mark = sha256(tokens.tobytes() + segments.starts.tobytes()).hexdigest()
        size_of_text = round(self.bytes * positions.size / self.tokens)
        return TokenStream([tokens], [tokens.size], lambda: segments, "<u4", self.end, size_of_text, mark)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """`count` tokens from `start` on. Raises IndexError beyond the stream's ends."""
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
