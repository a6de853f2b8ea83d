"""All documents of the sources, numbered, and cut into pieces where they are long or few."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..plan.run_config import DataConfig
from .documents import Document, Faults, Sources, check_encoding
from .reading import read_documents
from .splitting import FEW, LONGEST, piece_size, pieces

SHARD = 32 << 20  # characters per shard, and bytes of files that are read together
TO_TRAIN_ON = 24 << 20  # characters to train a tokenizer on

Advance = Callable[[int], None]  # is given how many more bytes, or characters, are done


class Piece(NamedTuple):
    """A document or a piece of one: the index of its file, and the piece's number in the document."""

    file: int
    number: int
    text: Document


class Reader:
    """All documents of the sources in order, cut into pieces if they are few or long. It can be read again."""

    def __init__(self, sources: Sources, config: DataConfig) -> None:
        self.files, self.config, self.encoding = sources.files, config, check_encoding(config.encoding)
        self.shard = SHARD
        self.piece = piece_size(sources.bytes) if self._few() else 0

    def read(
        self, files: range | None = None, faults: Faults | None = None, advance: Advance = lambda count: None
    ) -> Iterator[Piece]:
        """The pieces of `files`, all by default. `advance` is given the bytes of files that were read."""
        number = 0
        for index in range(len(self.files)) if files is None else files:
            for part in self._watched(self.files[index], faults, advance):
                for piece in pieces(part, self.piece or LONGEST):
                    number = 0 if piece.first else number + 1
                    yield Piece(index, number, piece)

    def texts(self, advance: Advance = lambda count: None) -> Iterator[Document]:
        """The texts alone."""
        return (piece.text for piece in self.read(advance=advance))

    def _watched(self, path: Path, faults: Faults | None, advance: Advance) -> Iterator[Document]:
        told, told_by = 0, list[Callable[[], int]]()
        for part in self._read(path, faults, told_by.append):
            advance(max(0, (now := told_by[-1]()) - told))
            told = max(told, now)
            yield part
        advance(path.stat().st_size - told)

    def _read(
        self, path: Path, faults: Faults | None = None, watch: Callable[[Callable[[], int]], None] = lambda tell: None
    ) -> Iterator[Document]:
        faults = faults or Faults(self.config.skip_invalid)
        return read_documents(path, faults, self.config.column, self.encoding, watch)

    def _few(self) -> bool:
        count = 0
        for path in self.files:
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
