"""The train/val split, by a hash of each document or piece."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .documents import Document

FEW = 20  # documents; fewer are cut into pieces before they are split
_SHORTEST, _LONGEST = 1000, 32_000  # characters per piece, approximately
LONGEST = 128 << 10  # characters of a piece where documents are many, so that a batch has work for several cores
_PIECES = 200  # target number of pieces, within these sizes


def piece_size(text_bytes: int) -> int:
    """The approximate piece size for few documents, small enough that some can be held out."""
    return max(_SHORTEST, min(_LONGEST, text_bytes // _PIECES))


def pieces(document: Document, size: int) -> Iterator[Document]:
    """Split a document into pieces of about `size` characters, at most twice that.

    They end at the end of a paragraph, a line or a word, in this preference. Joined they are the text; none is empty.
    A conversation stays whole.
    """
    text, start = document.text, 0
    if document.conversation:
        yield document
        return
    while len(text) - start > 1.5 * size:
        earliest, latest = start + size, min(start + 2 * size, len(text) - 1)
        ends = (text.find(mark, earliest, latest) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > earliest), earliest)
        yield Document(text[start:end], document.source, document.first and start == 0, last=False)
        start = end
    yield Document(text[start:], document.source, document.first and start == 0, document.last)


def hash_of(text: str) -> int:
    """A 64-bit hash of a text, so that equal texts are in one split."""
    return hash_of_bytes(text.encode())


def hash_of_bytes(text: bytes) -> int:
    """The hash of a text, from its UTF-8."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def choose_val(names: NDArray[np.uint64], sizes: NDArray[np.int64], share: float) -> frozenset[int]:
    """The hashes of the texts to hold out, given that and the characters of every text: about `share` of them all.

    Equal texts have one hash, so they stay together. Texts are taken in the order of their hashes, which is random,
    while they fit; then one more, if that is closer. The error is less than the shortest text left.

    Raises UsageError for fewer than two different hashes, since each split needs one.
    """
    ordered, of = np.unique(names, return_inverse=True)
    totals = np.bincount(of, sizes).astype(np.int64)
    total, held, taken = int(totals.sum()), np.zeros(len(ordered), np.bool_), 0
    if len(ordered) < 2:
        raise UsageError(
            f"the text has {total:,} characters in {len(ordered)} piece{'' if len(ordered) == 1 else 's'}:"
            f" too little to hold some out. Give at least {2 * _SHORTEST:,} characters that do not repeat"
        )
    wanted, most = share * total, len(ordered) - 1
    for number, size in enumerate(totals.tolist()):
        if taken + size <= wanted and most:
            held[number], taken, most = True, taken + size, most - 1
    left = np.flatnonzero(~held)
    shortest = left[np.argmin(totals[left])]  # of equally short ones, the first
    if not held.any() or (len(left) > 1 and totals[shortest] < 2 * (wanted - taken)):
        held[shortest] = True
    return frozenset(ordered[held].tolist())
