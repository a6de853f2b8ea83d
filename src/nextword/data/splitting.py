"""Which text is held out: told by a hash of each document, or of each piece where documents are few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from ..base import UsageError
from .documents import Document

FEW = 20  # documents; fewer are cut into pieces before they are split
_SHORTEST, _LONGEST = 1000, 32_000  # characters of a piece, about
_PIECES = 200  # of a text that gives neither longer nor shorter ones


def piece_size(text_bytes: int) -> int:
    """About how many characters the pieces of few documents have: small enough that some can be held out."""
    return max(_SHORTEST, min(_LONGEST, text_bytes // _PIECES))


def pieces(document: Document, size: int) -> Iterator[Document]:
    """A document's text in pieces of about `size` characters, at most twice that.

    They end where a paragraph does, or else a line, or else a word. Together they are the text; none is empty.
    """
    text, start = document.text, 0
    while len(text) - start > 1.5 * size:
        earliest, latest = start + size, min(start + 2 * size, len(text) - 1)
        ends = (text.find(mark, earliest, latest) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > earliest), earliest)
        yield Document(text[start:end], document.source, document.first and start == 0, last=False)
        start = end
    yield Document(text[start:], document.source, document.first and start == 0, document.last)


def hash_of(text: str) -> int:
    """64 bits: equal texts have equal ones, so they fall on one side."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def choose_val(documents: Iterable[Document], share: float, shift: int = 0) -> frozenset[int]:
    """The hashes, less their lowest `shift` bits, of the texts to hold out: about `share` of these texts' characters.

    Equal texts have one hash, so they stay together. In the order of their hashes, which is chance, texts are taken
    while they fit; then one more, if that is nearer. What is missing or too much is less than the shortest text that
    was left. With a `shift` so many texts have a hash in common that the sizes of very many take little memory.

    Raises UsageError unless there are two different ones: each side needs some.
    """
    sizes: dict[int, int] = {}
    for document in documents:
        name = hash_of(document.text) >> shift
        sizes[name] = sizes.get(name, 0) + len(document.text)
    total, held, taken = sum(sizes.values()), set[int](), 0
    if len(sizes) < 2:
        raise UsageError(
            f"the text has {total:,} characters in {len(sizes)} piece{'' if len(sizes) == 1 else 's'} of its own:"
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
