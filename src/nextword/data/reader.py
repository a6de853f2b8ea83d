"""All documents of the sources, numbered, and cut into pieces where they are long or few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..plan.run_config import DataConfig
from .documents import Document, Faults, Sources, check_encoding
from .reading import read_documents
from .splitting import FEW, LONGEST, piece_size, pieces

TO_TRAIN_ON = 24 << 20  # characters to train a tokenizer on


class Piece(NamedTuple):
    """A document or a piece of one: the document's number, and the piece's number in it."""

    document: int
    number: int
    text: Document


class Reader:
    """All documents of the sources in order, cut into pieces if they are few or long. It can be read again."""

    def __init__(self, sources: Sources, config: DataConfig) -> None:
        self.sources, self.config, self.encoding = sources, config, check_encoding(config.encoding)
        self.faults = Faults(config.skip_invalid)
        self.dropped: NDArray[np.bool_] | None = None  # by the number of the document
        self.piece = piece_size(sources.bytes) if self._few() else 0

    def __iter__(self) -> Iterator[Piece]:
        self.faults.reset()
        document = number = -1
        for path in self.sources.files:
            for part in self._read(path):
                for piece in pieces(part, self.piece or LONGEST):
                    number += 1
                    if piece.first:
                        document, number = document + 1, 0
                    if self.dropped is None or not self.dropped[document]:
                        yield Piece(document, number, piece)

    def texts(self) -> Iterator[Document]:
        """The texts alone."""
        return (piece.text for piece in self)

    def _read(self, path: object) -> Iterator[Document]:
        return read_documents(path, self.faults, self.config.column, self.encoding)  # type: ignore[arg-type]

    def _few(self) -> bool:
        count = 0
        for path in self.sources.files:
            for part in self._read(path):
                count += 1
                if count == FEW:
                    return False
                if not part.last:  # the file's only document: its other parts need not be read
                    break
        return True


def sample(documents: Iterable[Document], size: int, most: int = TO_TRAIN_ON) -> Iterator[str]:
    """Texts spread over documents of `size` bytes in total, at most `most` characters."""
    stride, taken = max(1, size // most), 0
    for number, document in enumerate(documents):
        if taken >= most:
            return
        if number % stride == 0:
            taken += len(document.text)
            yield document.text
