"""Documents → token shards, once: memory-mapped, checksummed, split by document, gone on with where they were left."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, atomic_write, open_regular, read_regular
from ..text import Tokenizer, tokenizer_from_folder
from .documents import Document, Faults, Sources, find_sources, read_documents
from .splitting import FEW, hash_of, limit_for, limit_of, piece_size, pieces
from .streams import TokenStream
from .tokenizer_training import KINDS, Kind, save_tokenizer, train_tokenizer

FORMAT = "nextword-data/1"
_BATCH = 1 << 20  # characters that are tokenized at a time, over all cores
_SHARD = 32 << 20  # characters of a shard
_TO_TRAIN_ON = 24 << 20  # characters that a tokenizer is trained on
_SMALL = 64 << 20  # bytes of text whose split is checked before it is made
_OURS = re.compile(r"manifest\.json|(train|heldout)-\d{5,}\.(bin|lengths\.npy|hashes\.npy)")

Tokens = NDArray[np.int64]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Part:
    """One file of tokens. `lengths` of its documents are beside it."""

    name: str
    tokens: int
    bytes: int  # of the text, UTF-8, ends of documents not counted
    documents: int
    sha256: str


@dataclass(frozen=True)
class Settings:
    """What the tokens depend on; data prepared otherwise is prepared anew."""

    sources: tuple[tuple[str, int, int], ...]  # path, bytes, modification time
    tokenizer: str  # SHA-256 of its tokenizer.json
    vocabulary: int
    end: int  # id of the end-of-text token
    holdout: float
    piece: int  # characters of a piece where documents are few; 0 keeps them whole
    column: str = ""
    skip_bad: bool = False


@dataclass
class Manifest:
    """manifest.json: what is in a folder of shards, and whether it is all."""

    settings: Settings
    train: list[Part] = field(default_factory=list)
    heldout: list[Part] = field(default_factory=list)
    documents: int = 0  # read so far, pieces counted as documents
    duplicates: int = 0
    broken: int = 0
    complete: bool = False

    def write(self, folder: Path) -> None:
        """Write it whole or not at all."""
        with atomic_write(folder / "manifest.json") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UsageError where there is none or it is not whole."""
        try:
            data = json.loads(read_regular(folder / "manifest.json", 64 << 20))
            if data.pop("format") != FORMAT:
                raise ValueError("of another version")
            settings = data.pop("settings")
            settings["sources"] = tuple(tuple(source) for source in settings["sources"])
            parts = {side: [Part(**part) for part in data.pop(side)] for side in ("train", "heldout")}
            return cls(Settings(**settings), parts["train"], parts["heldout"], **data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder}: no prepared data there ({error})") from None


class Dataset:
    """Prepared text. `train` and `heldout` are token streams; `vocabulary` is the tokenizer's."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.train, self.heldout = _stream(folder, manifest, "train"), _stream(folder, manifest, "heldout")

    def tokenizer(self) -> Tokenizer:
        """As it was saved with the data."""
        return tokenizer_from_folder(self.folder)

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""
        return self.manifest.settings.vocabulary

    @property
    def fingerprint(self) -> str:
        """Names the tokens: equal for equal data."""
        return f"{self.train.fingerprint[:16]}-{self.heldout.fingerprint[:16]}"

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text a token, over both sides."""
        return (self.train.bytes + self.heldout.bytes) / max(1, self.train.tokens + self.heldout.tokens)


def open_dataset(folder: Path | str, verify: bool = False) -> Dataset:
    """Data that `prepare` finished. Raises UsageError if it is not whole; `verify` reads every byte for it."""
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if not manifest.complete:
        raise UsageError(f"{folder}: the data was not prepared to its end; give its sources again to go on")
    data = Dataset(folder, manifest)
    if verify:
        for part in (*manifest.train, *manifest.heldout):
            path = folder / f"{part.name}.bin"
            with open_regular(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                    raise UsageError(f"{path} is not as it was written; prepare the data anew")
            _lengths(folder, part)
    return data


def prepare(
    paths: Sequence[Path | str] | Sources, folder: Path | str, tokenizer: Tokenizer | None = None, *,
    tokenizer_kind: Kind = "bpe", vocabulary: int = 4096, holdout: float = 0.05, skip_bad: bool = False,
    column: str | None = None, progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """Tokenize text into `folder`, or go on with what an interrupted call left there, and return it.

    Without a `tokenizer` one of `tokenizer_kind` is trained on the text first. About `holdout` of the documents, told
    by a hash of their text, are held out, so that equal texts fall on one side. Where there are fewer than 20
    documents, pieces of them are split instead. `progress` hears the share done and of what.

    Raises UsageError for text that is missing, broken or too little, RunError where it cannot be written.
    """
    if not 0 < holdout < 0.9:
        raise UsageError(f"the share to hold out lies between 0 and 0.9, not {holdout}")
    if tokenizer is None and tokenizer_kind not in KINDS:
        raise UsageError(f"tokenizer {tokenizer_kind!r} is not known. Kinds made here: {', '.join(KINDS)}")
    folder = Path(folder)
    say = progress or (lambda share, what: None)
    sources = paths if isinstance(paths, Sources) else find_sources(paths)
    reader = _Reader(sources, Faults(skip_bad), column)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or _kept_tokenizer(folder, reader, tokenizer_kind, vocabulary, say)
        settings = Settings(
            sources=tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sources.files),
            tokenizer=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(), vocabulary=tokenizer.vocabulary,
            end=_end(tokenizer),
            holdout=holdout, piece=reader.piece, column=column or "", skip_bad=skip_bad,
        )  # fmt: skip
        manifest = _begin(folder, settings, tokenizer)
        if not manifest.complete:
            _tokenize(folder, manifest, reader, tokenizer, say)
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise RunError(f"{folder}: the tokens could not be written ({what}); what is there is gone on with") from error
    return Dataset(folder, manifest)


class _Reader:
    """All documents of the sources in order, long ones cut where documents are few."""

    def __init__(self, sources: Sources, faults: Faults, column: str | None) -> None:
        self.sources, self.faults, self.column = sources, faults, column
        few = sum(1 for _ in islice(self._whole(), FEW)) < FEW
        self.piece = piece_size(sources.bytes) if few else 0
        self.faults.count = 0

    def __iter__(self) -> Iterator[Document]:
        self.faults.count = 0
        for document in self._whole():
            yield from pieces(document, self.piece) if self.piece else (document,)

    def _whole(self) -> Iterator[Document]:
        for path in self.sources.files:
            yield from read_documents(path, self.faults, self.column)


def _kept_tokenizer(folder: Path, reader: _Reader, kind: Kind, vocabulary: int, say: Progress) -> Tokenizer:
    """The tokenizer of an interrupted call with the same wishes, or one trained now."""
    files = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in reader.sources.files]
    wish = {"kind": kind, "vocabulary": vocabulary, "column": reader.column, "sources": files}
    note, made_before = folder / "tokenizer-wish.json", folder / "tokenizer.json"
    if note.exists() and made_before.exists():
        wished = {**wish, "sha256": hashlib.sha256(made_before.read_bytes()).hexdigest()}
        if json.loads(note.read_text()) == wished:
            return tokenizer_from_folder(folder)
    say(0.0, f"training a tokenizer ({kind})")
    made = train_tokenizer(_sample(reader), kind, vocabulary)
    save_tokenizer(made, folder)
    with atomic_write(note) as file:
        json.dump({**wish, "sha256": hashlib.sha256(made_before.read_bytes()).hexdigest()}, file)
    return tokenizer_from_folder(folder)


def _sample(reader: _Reader) -> Iterator[str]:
    """Texts spread over all sources, `_TO_TRAIN_ON` characters at most."""
    stride = max(1, reader.sources.bytes // _TO_TRAIN_ON)
    taken = 0
    for number, document in enumerate(reader):
        if taken >= _TO_TRAIN_ON:
            return
        if number % stride == 0:
            taken += len(document.text)
            yield document.text


def _begin(folder: Path, settings: Settings, tokenizer: Tokenizer) -> Manifest:
    """The manifest of what is there, if it was made with the same settings; else an empty one."""
    try:
        manifest = Manifest.read(folder)
        if manifest.settings == settings and _all_there(folder, manifest):
            return manifest
    except UsageError:
        pass
    _remove_shards(folder)
    save_tokenizer(tokenizer, folder)
    manifest = Manifest(settings)
    manifest.write(folder)
    return manifest


def _remove_shards(folder: Path) -> None:
    """Remove what another `prepare` wrote, and nothing else: the folder may hold the text itself."""
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name):
            old.unlink()


def _all_there(folder: Path, manifest: Manifest) -> bool:
    width = _dtype(manifest.settings.vocabulary).itemsize
    parts = (*manifest.train, *manifest.heldout)
    files = [(folder / f"{part.name}.bin", part.tokens * width) for part in parts]
    beside = [folder / f"{part.name}.lengths.npy" for part in parts]
    beside += [folder / f"{part.name}.hashes.npy" for part in manifest.train]
    whole = all(file.exists() and file.stat().st_size == size for file, size in files)
    return whole and all(file.exists() for file in beside)


def _tokenize(folder: Path, manifest: Manifest, reader: _Reader, tokenizer: Tokenizer, say: Progress) -> None:
    share = manifest.settings.holdout
    limit = limit_of(share) if reader.sources.bytes > _SMALL else limit_for(reader, share)
    end = manifest.settings.end
    shard = _Shard(tokenizer, end, limit)
    done, whole = 0, max(1, reader.sources.bytes)
    texts: list[str] = []
    held = 0
    for number, document in enumerate(reader):
        done += len(document.text)
        if number < manifest.documents:  # in a shard that was written before
            continue
        texts.append(document.text)
        held += len(document.text)
        if held >= _BATCH:
            shard.add(texts)
            texts, held = [], 0
            say(min(1.0, done / whole), "tokenizing")
            if shard.characters >= _SHARD:
                shard.write(folder, manifest, number + 1, reader.faults.count)
                shard = _Shard(tokenizer, end, limit)
    shard.add(texts)
    if shard.documents or not manifest.train:
        shard.write(folder, manifest, manifest.documents + shard.documents, reader.faults.count)
    manifest.broken = reader.faults.count
    manifest.duplicates = _duplicates(folder, manifest)
    _check_enough(manifest)
    manifest.complete = True
    manifest.write(folder)
    say(1.0, "tokenizing")


class _Shard:
    """Tokens gathered until they are written: one file a side."""

    def __init__(self, tokenizer: Tokenizer, end: int, limit: int) -> None:
        self.tokenizer, self.end, self.limit = tokenizer, end, limit
        self.dtype = _dtype(tokenizer.vocabulary)
        self.sides: dict[str, list[NDArray[Any]]] = {"train": [], "heldout": []}
        self.bytes = {"train": 0, "heldout": 0}
        self.hashes: list[int] = []
        self.documents = self.characters = 0

    def add(self, texts: list[str]) -> None:
        """Tokenize texts over all cores."""
        for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            digest = hash_of(text)
            side = "heldout" if digest < self.limit else "train"
            self.sides[side].append(np.array([*ids, self.end], self.dtype))
            self.bytes[side] += len(text.encode())
            self.hashes.append(digest)
            self.characters += len(text)
        self.documents += len(texts)

    def write(self, folder: Path, manifest: Manifest, documents: int, broken: int) -> None:
        """Write both files and say so in the manifest, in this order."""
        for side, parts in (("train", manifest.train), ("heldout", manifest.heldout)):
            name = f"{side}-{len(parts):05d}"
            pieces = self.sides[side]
            tokens = np.concatenate(pieces) if pieces else np.zeros(0, self.dtype)
            lengths = np.array([len(piece) for piece in pieces], np.uint32)
            with atomic_write(folder / f"{name}.bin", "wb") as file:
                file.write(tokens.tobytes())
            with atomic_write(folder / f"{name}.lengths.npy", "wb") as file:
                np.save(file, lengths)
            digest = hashlib.sha256(tokens.tobytes()).hexdigest()
            parts.append(Part(name, len(tokens), self.bytes[side], len(pieces), digest))
        with atomic_write(folder / f"{manifest.train[-1].name}.hashes.npy", "wb") as file:
            np.save(file, np.array(self.hashes, np.uint64))
        manifest.documents = documents
        manifest.broken = broken
        manifest.write(folder)


def _duplicates(folder: Path, manifest: Manifest) -> int:
    hashes = np.concatenate([np.load(folder / f"{part.name}.hashes.npy") for part in manifest.train])
    return len(hashes) - len(np.unique(hashes))


def _check_enough(manifest: Manifest) -> None:
    train, heldout = (sum(part.tokens for part in side) for side in (manifest.train, manifest.heldout))
    if train < 2 or heldout < 2:
        raise UsageError(
            f"the text gives {train:,} tokens to train on and {heldout:,} held out; both need some hundreds. Give more"
        )


def _dtype(vocabulary: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def _end(tokenizer: Tokenizer) -> int:
    end = min(tokenizer.stop_ids, default=None)
    if end is None:
        raise UsageError(f"{tokenizer.name} has no token that ends a text; take another tokenizer")
    return end


def _lengths(folder: Path, part: Part) -> NDArray[np.uint32]:
    path = folder / f"{part.name}.lengths.npy"
    try:
        lengths: NDArray[np.uint32] = np.load(path)
    except (OSError, ValueError):
        lengths = np.empty(0, np.uint32)
    if len(lengths) != part.documents or lengths.sum(dtype=np.int64) != part.tokens:
        raise UsageError(f"{path} is not whole; prepare the data anew")
    return lengths


def _stream(folder: Path, manifest: Manifest, side: Literal["train", "heldout"]) -> TokenStream:
    """One side's files as a stream. Raises UsageError where a file is missing or cut off."""
    dtype = _dtype(manifest.settings.vocabulary)
    parts: list[Part] = [part for part in getattr(manifest, side) if part.tokens]
    for part in parts:
        path = folder / f"{part.name}.bin"
        if not path.exists() or path.stat().st_size != part.tokens * dtype.itemsize:
            raise UsageError(f"{path} is not its {part.tokens:,} tokens; prepare the data anew")

    def starts() -> Tokens:
        lengths = np.concatenate([np.empty(0, np.uint32), *(_lengths(folder, part) for part in parts)])
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)[:-1]])

    return TokenStream(
        [folder / f"{part.name}.bin" for part in parts],
        [part.tokens for part in parts],
        starts,
        dtype.str,
        manifest.settings.end,
        sum(part.bytes for part in parts),
        sum(part.documents for part in parts),
        hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )
