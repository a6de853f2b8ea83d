"""What prepared text holds: documents and their sizes, duplicates, scripts, what was skipped, and samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from .dataset import Dataset, pieces_of
from .order import permute
from .streams import TokenStream

QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "most": 1.0}


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
    """Read the tables of all shards, not the tokens."""
    manifest, sizes = data.manifest, _sizes(data)
    return DataReport(
        folder=str(data.folder), vocabulary=data.vocabulary, documents=int(sizes.shape[1]),
        duplicates=manifest.duplicates, deduplicated=manifest.settings.deduplicate,
        bytes_per_token=data.bytes_per_token, train=_split(data.train), val=_split(data.val),
        bytes_per_document=_quantiles(sizes[1]), tokens_per_document=_quantiles(sizes[0]),
        scripts=dict(sorted(manifest.scripts.items(), key=lambda item: -item[1])),
        skipped=dict(sorted(manifest.skipped.items(), key=lambda item: -item[1])),
    )  # fmt: skip


def _sizes(data: Dataset) -> NDArray[np.int64]:
    """Tokens and bytes of every document, of both splits together: (2, documents)."""
    sizes = np.zeros((2, data.manifest.documents), np.int64)
    for pieces in pieces_of(data):
        first = int(pieces["document"].min(initial=0))
        for row, name in zip(sizes, ("tokens", "bytes"), strict=True):
            counts = np.bincount(pieces["document"] - first, pieces[name])  # documents of a shard follow each other
            row[first : first + len(counts)] += counts.astype(np.int64)
    return sizes[:, sizes[0] > 0]


def _split(stream: TokenStream) -> Split:
    flips = np.append(stream.segments.flips, [stream.tokens] * (1 + stream.segments.flips.size % 2))
    ignored = int((flips[1::2] - flips[: -(flips.size % 2) or None : 2]).sum())
    return Split(stream.documents, stream.tokens, stream.bytes, stream.tokens - ignored)


def _quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))


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
