"""What prepared text holds: documents and their sizes, duplicates, scripts, what was skipped, and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .dataset import PIECE, Dataset, pieces_of
from .order import permute

QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "most": 1.0}
_DIGITS = 12  # binary digits that are kept of a document's size


@dataclass(frozen=True)
class Split:
    """One split of the text."""

    documents: int  # with text in it
    tokens: int
    bytes: int
    targets: int  # tokens that are learned: fewer in conversations


@dataclass(frozen=True)
class DataReport:
    """The contents of a folder of prepared text."""

    folder: str
    vocabulary: int
    documents: int  # that were kept
    duplicates: int  # documents whose text an earlier one has
    deduplicated: bool  # whether these were dropped
    bytes_per_token: float
    train: Split
    val: Split
    bytes_per_document: dict[str, float]
    tokens_per_document: dict[str, float]
    scripts: dict[str, int]  # letters
    skipped: dict[str, int]  # files and rows, by reason
    units: dict[str, str] = field(default_factory=lambda: {"scripts": "letters", "skipped": "files or rows"})


@dataclass(frozen=True)
class SampledText:
    """The text of a document, or of a part of it that is not interrupted by the other split."""

    document: int
    tokens: int
    targets: int
    text: str


def report(data: Dataset) -> DataReport:
    """Read the tables of all shards, one at a time, not the tokens."""
    manifest, sizes = data.manifest, (_Sizes(), _Sizes())
    splits, unfinished = (_Counts(), _Counts()), np.empty(0, PIECE)
    for tables in pieces_of(data):
        for counts, table in zip(splits, tables, strict=True):
            counts.add(table)
        pieces = np.concatenate([unfinished, *tables])
        goes_on = pieces["document"] == pieces["document"].max(initial=0)  # perhaps, in the next shard
        unfinished = pieces[goes_on]
        _add_documents(sizes, pieces[~goes_on])
    _add_documents(sizes, unfinished)
    train, val = (Split(counts.documents, stream.tokens, stream.bytes, counts.targets)
                  for counts, stream in zip(splits, (data.train, data.val), strict=True))  # fmt: skip
    return DataReport(
        folder=str(data.folder), vocabulary=data.vocabulary, documents=sizes[0].count,
        duplicates=manifest.duplicates, deduplicated=manifest.settings.deduplicate,
        bytes_per_token=data.bytes_per_token, train=train, val=val,
        bytes_per_document=sizes[1].quantiles(), tokens_per_document=sizes[0].quantiles(),
        scripts=dict(sorted(manifest.scripts.items(), key=lambda item: -item[1])),
        skipped=dict(sorted(manifest.skipped.items(), key=lambda item: -item[1])),
    )  # fmt: skip


class _Counts:
    """Documents of a split and its targets, over the tables of its shards."""

    def __init__(self) -> None:
        self.documents = self.targets = 0
        self.last = -1  # document

    def add(self, pieces: NDArray[np.void]) -> None:
        documents = np.unique(pieces["document"][pieces["tokens"] > 0]).astype(np.int64)
        self.documents += int(np.count_nonzero(documents > self.last))
        self.last = int(documents.max(initial=self.last))
        self.targets += int(pieces["tokens"][pieces["learned"]].sum(dtype=np.int64))


class _Sizes:
    """How many documents have each size. Those above 4,096 are rounded down, by .05% at most."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """Documents."""
        return self.counts.total()

    def add(self, sizes: NDArray[np.int64]) -> None:
        cut = np.maximum(0, np.frexp(sizes.astype(np.float64))[1] - _DIGITS)
        values, counts = np.unique(sizes >> cut << cut, return_counts=True)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def quantiles(self) -> dict[str, float]:
        """The least size that a share of the documents does not exceed, for each of `QUANTILES`."""
        sizes = sorted(self.counts)
        reached = np.cumsum([self.counts[size] for size in sizes])
        ranks = np.maximum(1, np.ceil(np.array(list(QUANTILES.values())) * self.count))
        found = np.array(sizes, np.float64)[np.searchsorted(reached, ranks)]
        return dict(zip(QUANTILES, found.tolist(), strict=True))


def _add_documents(sizes: tuple[_Sizes, _Sizes], pieces: NDArray[np.void]) -> None:
    """Add the tokens and the bytes of documents, which have all their pieces here."""
    numbers, of = np.unique(pieces["document"], return_inverse=True)
    tokens, bytes = (np.bincount(of, pieces[name], len(numbers)).astype(np.int64) for name in ("tokens", "bytes"))
    for each, values in zip(sizes, (tokens, bytes), strict=True):
        each.add(values[tokens > 0])


def sampled(data: Dataset, split: str, count: int, seed: int, most: int) -> Iterator[SampledText]:
    """`count` texts in an order drawn with `seed`, at most `most` tokens of each."""
    streams: dict[str, Any] = {"train": data.train, "val": data.val}
    if split not in streams:
        raise UsageError(f"split {split!r} is not known. Known: train, val")
    stream, tokenizer = streams[split], data.tokenizer()
    segments = stream.segments
    total = len(segments.starts)
    for number in permute(np.arange(min(count, total)), total, (seed, 0)).tolist():
        start, length = int(segments.starts[number]), int(segments.lengths[number])
        ids = stream.read(start, min(length, most)).tolist()
        targets = int(segments.learned(np.arange(start, start + length)).sum())
        text = tokenizer.decode(ids[1:] if ids[0] == stream.end else ids, special=True)
        yield SampledText(int(segments.documents[number]), length, targets, text)


def folder_of(path: Path) -> Path:
    """The folder, checked. Raises UsageError for one that is not prepared text."""
    if not (path / "manifest.json").exists():
        raise UsageError(f"{path} holds no prepared text. Prepare it: nextword data prepare {path}")
    return path
