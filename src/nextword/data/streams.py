"""Tokens that lie in several memory-mapped files, read as one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_OPEN = 256  # mapped files at a time: each holds a file descriptor

Part = Path | NDArray[np.unsignedinteger]


class TokenStream:
    """One side of a dataset: its documents one after the other, each with the end-of-text token behind it."""

    def __init__(
        self,
        parts: Sequence[Part],
        lengths: Sequence[int],
        starts: Callable[[], NDArray[np.int64]],
        dtype: str,
        end: int,
        bytes: int,
        documents: int,
        fingerprint: str,
    ) -> None:
        """`lengths` are the tokens of each part; `starts` gives the documents' offsets when first needed."""
        self.tokens = sum(lengths)
        self.bytes = bytes  # of the text as UTF-8
        self.documents = documents
        self.end = end  # the id of the end-of-text token
        self.fingerprint = fingerprint
        self._offsets = np.cumsum([0, *lengths])
        self._starts: NDArray[np.int64] | Callable[[], NDArray[np.int64]] = starts

        @lru_cache(maxsize=_MOST_OPEN)
        def part(number: int) -> NDArray[np.unsignedinteger]:
            found = parts[number]
            return np.asarray(np.memmap(found, dtype, mode="r")) if isinstance(found, Path) else found

        self._part = part

    @classmethod
    def of(cls, documents: Sequence[ArrayLike], end: int, bytes: int | None = None) -> TokenStream:
        """A stream in memory; each document's tokens are given with their end token, if they have one."""
        arrays = [np.asarray(document, dtype=np.uint32) for document in documents]
        starts = np.cumsum([0, *(array.size for array in arrays)])[:-1]
        tokens = np.concatenate([*arrays, np.empty(0, np.uint32)])
        mark = sha256(tokens.tobytes() + starts.tobytes()).hexdigest()
        size = tokens.size if bytes is None else bytes
        return cls([tokens], [tokens.size], lambda: starts, "<u4", end, size, len(arrays), mark)

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """The offset of each document's first token, ascending."""
        if callable(self._starts):
            self._starts = self._starts()
        return self._starts

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
