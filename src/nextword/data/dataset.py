"""Prepared text: token shards on disk with a manifest, memory-mapped and checksummed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError, atomic_write, open_regular, read_regular
from ..text import Tokenizer, tokenizer_from_folder
from .difficulty import Difficulty, difficulty
from .streams import Segments, TokenStream

FORMAT = "nextword-data/5"
PIECE = np.dtype(
    [("tokens", "<u4"), ("bytes", "<u4"), ("document", "<u4"), ("number", "<u4"), ("last", "?"), ("learned", "?")]
)
_HELD = 16 << 20  # bytes of a column of segments that are held in memory


@dataclass(frozen=True)
class Shard:
    """One file of tokens, and a table of its pieces: tokens, bytes, document, number in it, whether it is the last, and
    whether its tokens are targets: in conversations, those of the assistant."""

    name: str
    tokens: int
    bytes: int  # of the text in UTF-8, without the end-of-text tokens
    sha256: str
    pieces_sha256: str


@dataclass(frozen=True)
class TokenSettings:
    """The settings that determine the tokens; if they change, the data is prepared again."""

    sources: str  # SHA-256 of the extension and SHA-256 of each file
    tokenizer: str  # SHA-256 of its tokenizer.json
    vocabulary: int
    end: int  # id of the end-of-text token
    val_fraction: float
    piece: int  # characters per piece if there are few documents; 0: whole documents
    column: str = ""
    skip_invalid: bool = False
    encoding: str = "utf-8"
    deduplicate: bool = False


@dataclass
class Manifest:
    """manifest.json: the contents of a folder of shards, and whether it is complete."""

    settings: TokenSettings
    train: list[Shard] = field(default_factory=list)
    val: list[Shard] = field(default_factory=list)
    documents: int = 0  # read, with the duplicates that were dropped
    duplicates: int = 0  # documents whose text another one before has
    broken: int = 0  # rows and files
    skipped: dict[str, int] = field(default_factory=dict)  # rows and files, by reason
    scripts: dict[str, int] = field(default_factory=dict)  # letters, by script
    complete: bool = False

    def write(self, folder: Path) -> None:
        """Write it atomically."""
        with atomic_write(folder / "manifest.json") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UsageError if it is missing or incomplete."""
        try:
            data = json.loads(read_regular(folder / "manifest.json", 64 << 20))
            if data.pop("format") != FORMAT:
                raise ValueError("of another version")
            settings = data.pop("settings")
            train, val = ([Shard(**shard) for shard in data.pop(side)] for side in ("train", "val"))
            return cls(TokenSettings(**settings), train, val, **data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder}: no prepared data there ({error})") from None


class Dataset:
    """Prepared text. `train` and `val` are token streams; `vocabulary` is the tokenizer's."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.train, self.val = _stream(folder, manifest, "train"), _stream(folder, manifest, "val")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer saved with the data."""
        return tokenizer_from_folder(self.folder)

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return self.manifest.settings.vocabulary

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens."""
        return f"{self.train.fingerprint[:16]}-{self.val.fingerprint[:16]}"

    @property
    def val_share(self) -> float:
        """The held-out share of the text's bytes."""
        return self.val.bytes / max(1, self.train.bytes + self.val.bytes)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, over train and val."""
        return (self.train.bytes + self.val.bytes) / max(1, self.train.tokens + self.val.tokens)

    @cached_property
    def difficulty(self) -> Difficulty:
        """How hard the text is to predict; measured once, in a second."""
        return difficulty(self)


def open_dataset(folder: Path | str, verify: bool = False) -> Dataset:
    """Data that `prepare` finished. Raises UsageError if it is incomplete; `verify` checks every byte."""
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if not manifest.complete:
        raise UsageError(f"{folder}: the data is incomplete; give its sources again to continue")
    data = Dataset(folder, manifest)
    if verify:
        for shard in (*manifest.train, *manifest.val):
            path = folder / f"{shard.name}.bin"
            with open_regular(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise UsageError(f"{path} has changed since it was written; prepare the data again")
            _read_pieces(folder, shard)
    return data


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def _read_pieces(folder: Path, shard: Shard) -> NDArray[np.void]:
    path = folder / f"{shard.name}.pieces.npy"
    try:
        pieces: NDArray[np.void] = np.load(path)
    except (OSError, ValueError, EOFError):
        pieces = np.empty(0, PIECE)
    if pieces.dtype != PIECE or hashlib.sha256(pieces.tobytes()).hexdigest() != shard.pieces_sha256:
        raise UsageError(f"{path} has changed since it was written; prepare the data again")
    return pieces


def pieces_of(data: Dataset) -> Iterator[tuple[NDArray[np.void], NDArray[np.void]]]:
    """The tables of pieces of train and val, shard after shard: the documents of both follow each other."""
    for train, val in zip(data.manifest.train, data.manifest.val, strict=True):
        yield _read_pieces(data.folder, train), _read_pieces(data.folder, val)


class _Column:
    """Numbers that are added little by little; many of them lie in a file without a name, mapped into memory."""

    def __init__(self, dtype: str, folder: Path | None) -> None:
        self.dtype, self.size = np.dtype(dtype), 0
        place = str(folder) if folder and os.access(folder, os.W_OK) else None
        self.file = tempfile.SpooledTemporaryFile(_HELD, dir=place)  # noqa: SIM115 - closed by `array`

    def extend(self, values: NDArray[Any]) -> None:
        self.size += self.file.write(np.ascontiguousarray(values, self.dtype).data)

    def array(self) -> NDArray[Any]:
        """All of them; there can be no more."""
        with self.file:
            if self.size <= _HELD:
                self.file.seek(0)
                return np.frombuffer(self.file.read(), self.dtype)
            self.file.flush()
            return np.asarray(np.memmap(self.file, self.dtype, mode="r", shape=(self.size // self.dtype.itemsize,)))


def segments_of(tables: Iterable[NDArray[np.void]], folder: Path | None = None) -> Segments:
    """Segments, from the tables of pieces of shards: consecutive pieces of one document, which may go on in the next.

    Those of very many documents lie in files of `folder` that have no names.
    """
    columns = [_Column(dtype, folder) for dtype in ("<i8", "<i8", "?", "<u4", "<i8")]
    pieces, tokens, learned = np.empty(0, PIECE), 0, True
    for table in chain(tables, [None]):
        pieces = pieces if table is None else np.concatenate([pieces, table])
        begins = _begins(pieces)
        whole = len(pieces) if table is None or not begins.size else int(begins[-1])
        sizes = pieces["tokens"][:whole].astype(np.int64)
        starts = tokens + np.cumsum(sizes) - sizes
        flips = np.diff(pieces["learned"][:whole].astype(np.int8), prepend=np.int8(learned)) != 0
        begins = begins[begins < whole]
        ends = np.append(begins, whole)[1:]
        tokens += int(sizes.sum())
        lengths = np.diff(np.append(starts[begins], tokens)) if begins.size else begins
        some = lengths > 0
        found = (starts[begins][some], lengths[some], pieces["last"][ends - 1][some], pieces["document"][begins][some])
        for column, values in zip(columns, (*found, starts[flips]), strict=True):
            column.extend(values)
        learned = bool(pieces["learned"][whole - 1]) if whole else learned
        pieces = pieces[whole:]
    return Segments(*(column.array() for column in columns))


def _begins(pieces: NDArray[np.void]) -> NDArray[np.int64]:
    """The indices of pieces that do not go on where the one before ended."""
    document, number = pieces["document"].astype(np.int64), pieces["number"].astype(np.int64)
    return np.flatnonzero((np.diff(document, prepend=-1) != 0) | (np.diff(number, prepend=-1) != 1))


def _stream(folder: Path, manifest: Manifest, side: Literal["train", "val"]) -> TokenStream:
    """The files of one split as a stream. Raises UsageError if a file is missing or truncated."""
    dtype = token_dtype(manifest.settings.vocabulary)
    shards: list[Shard] = [shard for shard in getattr(manifest, side) if shard.tokens]
    for shard in shards:
        path = folder / f"{shard.name}.bin"
        if not path.exists() or path.stat().st_size != shard.tokens * dtype.itemsize:
            raise UsageError(f"{path} does not hold {shard.tokens:,} tokens; prepare the data again")

    def segments() -> Segments:
        return segments_of((_read_pieces(folder, shard) for shard in shards), folder)

    return TokenStream(
        [folder / f"{shard.name}.bin" for shard in shards],
        [shard.tokens for shard in shards],
        segments,
        dtype.str,
        manifest.settings.end,
        sum(shard.bytes for shard in shards),
        hashlib.sha256("".join(shard.sha256 + shard.pieces_sha256 for shard in shards).encode()).hexdigest(),
    )
