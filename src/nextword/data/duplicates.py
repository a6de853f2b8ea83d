"""Finds documents whose text an earlier one has, by a hash of the text: 8 bytes of memory per document."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from .documents import Document


class DocumentHashes:
    """The hash of every document, collected while the documents are read for something else."""

    def __init__(self) -> None:
        self.hashes = array("Q")
        self.characters = 0

    def watch(self, parts: Iterable[Document]) -> Iterator[Document]:
        """The same parts; each document's hash is there when its last part is."""
        digest = blake2b(digest_size=8)
        for part in parts:
            if part.first:
                digest = blake2b(digest_size=8)
            digest.update(part.text.encode())
            if part.last:
                self.hashes.append(int.from_bytes(digest.digest(), "little"))
            self.characters += len(part.text)
            yield part

    def repeats(self) -> NDArray[np.bool_]:
        """Whether the text of each document is that of an earlier one."""
        values = np.frombuffer(self.hashes, np.uint64)
        repeats = np.ones(len(values), np.bool_)
        repeats[np.unique(values, return_index=True)[1]] = False
        return repeats
