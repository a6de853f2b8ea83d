"""The train/val split, by a hash of each document or piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

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
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def choose_val(documents: Iterable[Document], share: float, shift: int = 0) -> frozenset[int]:
    """The hashes, without their lowest `shift` bits, of the texts to hold out: about `share` of all characters.

    Equal texts have one hash, so they stay together. Texts are taken in the order of their hashes, which is
    random, while they fit; then one more, if that is closer. The error is less than the shortest text left. With a
    `shift`, texts share hashes, so that the sizes of very many take little memory.

    Raises UsageError for fewer than two different hashes, since each split needs one.
    """
    sizes: dict[int, int] = {}
    for document in documents:
        name = hash_of(document.text) >> shift
        sizes[name] = sizes.get(name, 0) + len(document.text)
    total, held, taken = sum(sizes.values()), set[int](), 0
    if len(sizes) < 2:
        raise UsageError(
            f"the text has {total:,} characters in {len(sizes)} piece{'' if len(sizes) == 1 else 's'}:"
            f" too little to hold some out. Give at least {2 * _SHORTEST:,} characters that do not repeat"
        )
    wanted = share * total
    for name in sorted(sizes):
        if taken + sizes[name] <= wanted and len(held) < len(sizes) - 1:
            held.add(name)
            taken += sizes[name]
    left = sorted((sizes[name], name) for name in sizes.keys() - held)
    if not held or (len(left) > 1 and left[0][0] < 2 * (wanted - taken)):
        held.add(left[0][1])
    return frozenset(held)
