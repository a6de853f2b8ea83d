"""Reads all text before it is tokenized: where shards begin, which documents repeat, what is held out.

Files are read in blocks. A block leaves a table of its pieces and a list of its parts, each the text of one shard; a
block that has them is not read again. Nothing of it depends on other blocks, so that they may be read anywhere and in
any order. What is decided from all of them is decided from their tables, in the order of the text.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..base import atomic_write, read_json
from .documents import Faults
from .reader import Advance, Reader
from .splitting import choose_val, hash_of

SMALL = 64 << 20  # bytes of text up to which pieces are hashed individually when the validation text is chosen
_SHIFT = 52  # bits dropped from the hashes of a larger text: 4,096 groups
_TOGETHER = 1 << 20  # hashes compared, or rows of a table read, at a time

_ROW = np.dtype([("piece", "<u8"), ("document", "<u8"), ("characters", "<u4"), ("last", "?")])


@dataclass(frozen=True)
class Part:
    """The text of one shard: consecutive pieces."""

    file: int  # index of the file it begins in
    skipped: int  # pieces of that file before it
    pieces: int
    documents: int  # that begin in it
    characters: int


@dataclass(frozen=True)
class Survey:
    """What was found in all of the text. A text is held out if `held_out` has its hash without the lowest bits."""

    parts: tuple[Part, ...]
    before: tuple[int, ...]  # documents that begin before each part
    documents: int
    duplicates: int  # documents whose text an earlier one has
    dropped: NDArray[np.uint8] | None  # a bit for each document, if duplicates are dropped
    held_out: frozenset[int]
    shift: int
    broken: int  # rows and files
    skipped: Counter[str]  # rows and files, by reason

    def is_dropped(self, document: int) -> bool:
        """Whether a document, by its number, is a duplicate to leave out."""
        return self.dropped is not None and bool(self.dropped[document >> 3] >> (document & 7) & 1)


def blocks_of(files: Sequence[Path], least: int) -> list[range]:
    """Consecutive files of at least so many bytes together."""
    blocks, first, size = [], 0, 0
    for number, file in enumerate(files, 1):
        size += file.stat().st_size
        if size >= least or number == len(files):
            blocks.append(range(first, number))
            first, size = number, 0
    return blocks


# ---- one block


def survey_block(shared: tuple[Path, Reader], block: range, advance: Advance) -> None:
    """Read the files of a block, and write its table and its parts into the folder, unless they are there."""
    folder, reader = shared
    faults, parts = Faults(reader.config.skip_invalid), list[Part]()
    with atomic_write(_table(folder, block), "wb") as file:
        for part, rows in _parts(reader, block, faults, advance):
            file.write(rows.tobytes())
            parts.append(part)
    with atomic_write(_parts_file(folder, block)) as file:
        found = {"parts": list(map(asdict, parts)), "broken": faults.count, "skipped": faults.reasons}
        json.dump(found, file)


def is_surveyed(folder: Path, block: range) -> bool:
    """Whether the block was read before."""
    return _parts_file(folder, block).exists()


def _table(folder: Path, block: range) -> Path:
    return folder / f"{block.start:08d}.rows"


def _parts_file(folder: Path, block: range) -> Path:
    return folder / f"{block.start:08d}.json"


def _parts(reader: Reader, block: range, faults: Faults, advance: Advance) -> Iterator[tuple[Part, NDArray[np.void]]]:
    """Each part with its rows of the table."""
    rows, begun, whole = _Rows(), 0, blake2b(digest_size=8)
    file, skipped, place = block.start, 0, 0  # where the part begins; pieces of this file so far
    at = block.start
    for piece in reader.read(block, faults, advance):
        if piece.file != at:
            at, place = piece.file, 0
        if rows.size >= reader.shard:
            yield Part(file, skipped, len(rows.sizes), begun, rows.size), rows.table()
            rows, begun, file, skipped = _Rows(), 0, piece.file, place
        elif not rows.size:
            file, skipped = piece.file, place
        text, place = piece.text.text, place + 1
        begun += piece.number == 0
        digest = hash_of(text)
        if piece.text.first and piece.text.last:
            rows.add(digest, digest, len(text), True)
            continue
        if piece.text.first:
            whole = blake2b(digest_size=8)
        whole.update(text.encode())
        document = int.from_bytes(whole.digest(), "little") if piece.text.last else 0
        rows.add(digest, document, len(text), piece.text.last)
    if rows.size:
        yield Part(file, skipped, len(rows.sizes), begun, rows.size), rows.table()


class _Rows:
    """Rows of the table, as columns."""

    def __init__(self) -> None:
        self.pieces, self.documents, self.sizes, self.last = array("Q"), array("Q"), array("I"), bytearray()
        self.size = 0

    def add(self, piece: int, document: int, characters: int, last: bool) -> None:
        self.pieces.append(piece)
        self.documents.append(document)
        self.sizes.append(characters)
        self.last.append(last)
        self.size += characters

    def table(self) -> NDArray[np.void]:
        rows = np.empty(len(self.sizes), _ROW)
        rows["piece"], rows["document"], rows["characters"] = self.pieces, self.documents, self.sizes
        rows["last"] = np.frombuffer(self.last, np.uint8)
        return rows


# ---- all blocks


def merge(folder: Path, blocks: Sequence[range], reader: Reader, text_bytes: int, share: float) -> Survey:
    """Decide what is held out and what is dropped. Raises UsageError for text that cannot be divided."""
    parts, skipped, broken = list[Part](), Counter[str](), 0
    for block in blocks:
        found = read_json(_parts_file(folder, block))
        parts += [Part(**part) for part in found["parts"]]
        skipped.update(found["skipped"])
        broken += found["broken"]
    begun = np.cumsum([0, *(part.documents for part in parts)]).tolist()

    def rows() -> Iterator[NDArray[np.void]]:
        for block in blocks:
            with _table(folder, block).open("rb") as file:
                while (some := np.fromfile(file, _ROW, _TOGETHER)).size:
                    yield some

    repeats, duplicates = find_repeats(lambda: (some["document"][some["last"]] for some in rows()), begun[-1])
    dropped = repeats if reader.config.deduplicate and duplicates else None
    shift = _SHIFT if text_bytes > SMALL else 0
    names, sizes = _sizes(rows(), dropped, shift)
    return Survey(tuple(parts), tuple(begun[:-1]), begun[-1], duplicates, dropped,
                  choose_val(names, sizes, share), shift, broken, skipped)  # fmt: skip


def find_repeats(hashes: Callable[[], Iterator[NDArray[np.uint64]]], count: int) -> tuple[NDArray[np.uint8], int]:
    """A bit for each of `count` documents, lowest first, whether an earlier one has its hash; and how many do.

    The hashes are gone through once for every million of them, each time for another share of their values.
    """
    passes, bits, found = max(1, -(-count // _TOGETHER)), np.zeros(count // 8 + 1, np.uint8), 0
    for turn in range(passes):
        values, places, start = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
        for some in hashes():
            here = np.flatnonzero(some % np.uint64(passes) == turn)
            values.append(some[here])
            places.append(here + start)
            start += len(some)
        repeats = np.ones(sum(map(len, values)), np.bool_)
        repeats[np.unique(np.concatenate(values), return_index=True)[1]] = False
        documents = np.concatenate(places)[repeats]
        np.bitwise_or.at(bits, documents >> 3, (1 << (documents & 7)).astype(np.uint8))
        found += len(documents)
    return bits, found


def _sizes(
    tables: Iterator[NDArray[np.void]], dropped: NDArray[np.uint8] | None, shift: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of pieces without their lowest bits, and the characters of each; for a large text, of each group."""
    groups = np.zeros(1 << (64 - shift) if shift else 0, np.int64)
    names, sizes, document = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    for rows in tables:
        numbers = document + np.cumsum(rows["last"]) - rows["last"]
        document += int(np.count_nonzero(rows["last"]))
        kept = rows if dropped is None else rows[dropped[numbers >> 3] >> (numbers & 7) & 1 == 0]
        characters = kept["characters"].astype(np.int64)
        if shift:
            groups += np.bincount(kept["piece"] >> np.uint64(shift), characters, len(groups)).astype(np.int64)
        else:
            names.append(kept["piece"])
            sizes.append(characters)
    if shift:
        return np.flatnonzero(groups).astype(np.uint64), groups[groups > 0]
    return np.concatenate(names), np.concatenate(sizes)
