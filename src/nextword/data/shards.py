"""Documents → token shards, once: memory-mapped, checksummed, split by document, gone on with where they were left."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, atomic_write
from ..text import Tokenizer, tokenizer_from_folder
from .documents import Document, Faults, Sources, find_sources, read_documents
from .streams import TokenStream
from .tokenizer_training import KINDS, Kind, save_tokenizer, train_tokenizer

FORMAT = "nextword-data/1"
FEW = 20  # documents; fewer are cut into pieces before they are split
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
            data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
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
    if verify:
        for part in (*manifest.train, *manifest.heldout):
            with (folder / f"{part.name}.bin").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                    raise UsageError(f"{folder / part.name}.bin is not as it was written; prepare the data anew")
    return Dataset(folder, manifest)


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
        size = sources.bytes
        few = len(list(zip(range(FEW), self._whole(), strict=False))) < FEW
        self.piece = max(1000, min(32_000, size // 200)) if few else 0
        self.faults.count = 0

    def __iter__(self) -> Iterator[Document]:
        self.faults.count = 0
        for document in self._whole():
            yield from _cut(document, self.piece) if self.piece else (document,)

    def _whole(self) -> Iterator[Document]:
        for path in self.sources.files:
            yield from read_documents(path, self.faults, self.column)


def _cut(document: Document, size: int) -> Iterator[Document]:
    """Pieces of about `size` characters that end where a paragraph does, or else a line."""
    text, start = document.text, 0
    while len(text) - start > 1.5 * size:
        end = text.find("\n\n", start + size, start + 2 * size)
        if end < 0:
            end = text.find("\n", start + size, start + 2 * size)
        end = start + size if end < 0 else end + 1
        yield Document(text[start:end], document.source)
        start = end
    yield Document(text[start:], document.source)


def _kept_tokenizer(folder: Path, reader: _Reader, kind: Kind, vocabulary: int, say: Progress) -> Tokenizer:
    """The tokenizer of an interrupted call with the same wishes, or one trained now."""
    files = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in reader.sources.files]
    wish = {"kind": kind, "vocabulary": vocabulary, "column": reader.column, "sources": files}
    note = folder / "tokenizer-wish.json"
    if note.exists() and json.loads(note.read_text()) == wish:
        return tokenizer_from_folder(folder)
    say(0.0, f"training a tokenizer ({kind})")
    made = train_tokenizer(_sample(reader), kind, vocabulary)
    save_tokenizer(made, folder)
    with atomic_write(note) as file:
        json.dump(wish, file)
    return tokenizer_from_folder(folder)


def _sample(reader: _Reader) -> Iterator[str]:
    """Texts spread over all sources, `_TO_TRAIN_ON` characters at most."""
    stride = max(1, reader.sources.bytes // _TO_TRAIN_ON)
    taken = 0
    for number, document in enumerate(reader):
        if number % stride == 0 and taken < _TO_TRAIN_ON:
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
    return all(file.exists() and file.stat().st_size == size for file, size in files)


def _tokenize(folder: Path, manifest: Manifest, reader: _Reader, tokenizer: Tokenizer, say: Progress) -> None:
    limit = _limit(reader, manifest.settings.holdout)
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
    manifest.complete = True
    shard.write(folder, manifest, -1, reader.faults.count)
    manifest.duplicates = _duplicates(folder, manifest)
    _check_enough(manifest)
    manifest.write(folder)
    say(1.0, "tokenizing")


def _limit(reader: _Reader, holdout: float) -> int:
    """The hash below which a text is held out; of little text moved so that both sides have some."""
    limit = int(holdout * 2**64)
    if reader.sources.bytes > _SMALL:
        return limit
    hashes = sorted({_hash(document.text) for document in reader})
    if len(hashes) < 2:
        raise UsageError(
            f"the text is one piece of {reader.sources.bytes:,} bytes: too little to hold some out."
            " Give at least some thousands of characters in several paragraphs"
        )
    return min(max(limit, hashes[0] + 1), hashes[-1])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
            digest = _hash(text)
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
        manifest.documents = documents if documents >= 0 else manifest.documents + self.documents
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


def _stream(folder: Path, manifest: Manifest, side: Literal["train", "heldout"]) -> TokenStream:
    """One side's files as a stream. Raises UsageError where a file is missing or cut off."""
    dtype = _dtype(manifest.settings.vocabulary)
    parts: list[Part] = [part for part in getattr(manifest, side) if part.tokens]
    for part in parts:
        path = folder / f"{part.name}.bin"
        if not path.exists() or path.stat().st_size != part.tokens * dtype.itemsize:
            raise UsageError(f"{path} is not its {part.tokens:,} tokens; prepare the data anew")

    def starts() -> Tokens:
        lengths = np.concatenate([np.load(folder / f"{part.name}.lengths.npy") for part in parts])
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
