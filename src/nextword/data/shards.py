"""Documents → token shards, once: memory-mapped, checksummed, split by document, gone on with where they were left.

`prepare_in` names a folder by all that its tokens depend on, the contents of the text above all, and never writes to
one that is there: what a run reads does not change under it, whatever is prepared meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, atomic_write, locked, open_regular, read_regular
from ..text import Tokenizer, tokenizer_from_folder
from .documents import Document, Faults, Sources, check_encoding, find_sources, read_documents
from .splitting import FEW, check_share, choose_heldout, hash_of, piece_size, pieces
from .streams import Segments, TokenStream
from .tokenizer_training import KINDS, TokenizerKind, save_tokenizer, train_tokenizer

FORMAT = "nextword-data/2"
_BATCH = 1 << 20  # characters that are tokenized at a time, over all cores
_SHARD = 32 << 20  # characters of a shard
_TO_TRAIN_ON = 24 << 20  # characters that a tokenizer is trained on
_TO_MEASURE_ON = 2 << 20  # characters that bytes a token are measured on
_SMALL = 64 << 20  # bytes of text whose pieces are told apart one by one when the held-out ones are chosen
_SHIFT = 52  # bits that hashes of more text are cut by: 4,096 groups
_OURS = re.compile(r"manifest\.json|(train|heldout)-\d{5,}\.(bin|pieces\.npy|hashes\.npy)")
_PIECE = np.dtype([("tokens", "<u4"), ("document", "<u4"), ("number", "<u4"), ("last", "?")])

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Part:
    """One file of tokens. Beside it the length of each piece, its document, its number there, and if it is the last."""

    name: str
    tokens: int
    bytes: int  # of the text, UTF-8, ends of documents not counted
    sha256: str
    pieces_sha256: str


@dataclass(frozen=True)
class Settings:
    """What the tokens depend on; data prepared otherwise is prepared anew."""

    sources: tuple[tuple[str, str], ...]  # ending and SHA-256 of each file
    tokenizer: str  # SHA-256 of its tokenizer.json
    vocabulary: int
    end: int  # id of the end-of-text token
    holdout: float
    piece: int  # characters of a piece where documents are few; 0 keeps them whole
    column: str = ""
    skip_bad: bool = False
    encoding: str = "utf-8"


@dataclass
class Manifest:
    """manifest.json: what is in a folder of shards, and whether it is all."""

    settings: Settings
    train: list[Part] = field(default_factory=list)
    heldout: list[Part] = field(default_factory=list)
    pieces: int = 0  # read so far: documents, or pieces of them
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
    def heldout_share(self) -> float:
        """Of the text's bytes, held out."""
        return self.heldout.bytes / max(1, self.train.bytes + self.heldout.bytes)

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
            _pieces(folder, part)
    return data


def prepare(
    paths: Sequence[Path | str] | Sources, folder: Path | str, tokenizer: Tokenizer | None = None, *,
    tokenizer_kind: TokenizerKind = "bpe", vocabulary: int = 4096, holdout: float = 0.05, skip_bad: bool = False,
    column: str | None = None, encoding: str = "utf-8", progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """Tokenize text into `folder`, or go on with what an interrupted call left there, and return it.

    Without a `tokenizer` one of `tokenizer_kind` is trained on the text first. About `holdout` of the text is held out:
    documents that a hash of their text chooses, so that equal texts fall on one side. Where there are fewer than 20
    documents, pieces of them are split instead. `progress` hears the share done and of what.

    What was prepared otherwise in `folder` is replaced: where something may read it, use `prepare_in`.

    Raises UsageError for text that is missing, broken or too little, RunError where it cannot be written.
    """
    wishes = _Wishes(tokenizer_kind, vocabulary, holdout, skip_bad, column, check_encoding(encoding))
    wishes.check(tokenizer)
    folder = Path(folder)
    say = progress or (lambda share, what: None)
    sources = paths if isinstance(paths, Sources) else find_sources(paths, encoding)
    try:
        contents = _contents(sources)
        reader = _Reader(sources, Faults(skip_bad), column, wishes.encoding)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or _kept_tokenizer(folder, reader, contents, wishes, say)
        settings = Settings(
            sources=contents, tokenizer=_digest_of(tokenizer), vocabulary=tokenizer.vocabulary, end=_end(tokenizer),
            holdout=holdout, piece=reader.piece, column=column or "", skip_bad=skip_bad, encoding=wishes.encoding,
        )  # fmt: skip
        manifest = _begin(folder, settings, tokenizer)
        if not manifest.complete:
            _tokenize(folder, manifest, reader, tokenizer, say)
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise RunError(f"{folder}: the tokens could not be written ({what}); what is there is gone on with") from error
    return Dataset(folder, manifest)


def prepare_in(
    store: Path, paths: Sequence[Path | str] | Sources, tokenizer: Tokenizer | None = None, *,
    tokenizer_kind: TokenizerKind = "bpe", vocabulary: int = 4096, holdout: float = 0.05, skip_bad: bool = False,
    column: str | None = None, encoding: str = "utf-8", progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Dataset:  # fmt: skip
    """As `prepare`, in a folder of `store` that is named by its content; one that is there is only read.

    It is made under another name and renamed when it is whole. Of two processes that want the same one makes it and
    the other waits, which `say` hears.
    """
    wishes = _Wishes(tokenizer_kind, vocabulary, holdout, skip_bad, column, check_encoding(encoding))
    wishes.check(tokenizer)
    sources = paths if isinstance(paths, Sources) else find_sources(paths, encoding)
    folder, making = store / _content_name(sources, tokenizer, wishes), store / ".making"
    if (found := _whole(folder)) is not None:
        return found
    try:
        making.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{making}: cannot be made ({(error.strerror or str(error)).lower()})") from None
    with locked(making / f"{folder.name}.lock", lambda: say("another command prepares this text; waiting for it")):
        if (found := _whole(folder)) is not None:
            return found
        prepare(
            sources, making / folder.name, tokenizer, tokenizer_kind=tokenizer_kind, vocabulary=vocabulary,
            holdout=holdout, skip_bad=skip_bad, column=column, encoding=encoding, progress=progress,
        )  # fmt: skip
        damaged = making / f"{folder.name}.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        if folder.exists():  # of no use to anyone; what a process has mapped of it stays readable
            os.rename(folder, damaged)
        os.rename(making / folder.name, folder)
        shutil.rmtree(damaged, ignore_errors=True)
    return open_dataset(folder)


@dataclass(frozen=True)
class _Wishes:
    """What a caller asks for, beside the text."""

    kind: TokenizerKind
    vocabulary: int
    holdout: float
    skip_bad: bool
    column: str | None
    encoding: str

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raise UsageError for what cannot be."""
        check_share(self.holdout)
        if tokenizer is None and self.kind not in KINDS:
            raise UsageError(f"tokenizer {self.kind!r} is not known. Kinds made here: {', '.join(KINDS)}")


def _whole(folder: Path) -> Dataset | None:
    try:
        return open_dataset(folder)
    except UsageError:
        return None


def _content_name(sources: Sources, tokenizer: Tokenizer | None, wishes: _Wishes) -> str:
    """Of a folder: a hash of all that its tokens depend on."""
    try:
        contents = _contents(sources)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    values = asdict(wishes)
    if tokenizer is not None or wishes.kind != "bpe":
        values["vocabulary"] = 0
    if tokenizer is not None:
        values["kind"] = [_digest_of(tokenizer), _end(tokenizer)]
    key = json.dumps([FORMAT, contents, values], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _contents(sources: Sources) -> tuple[tuple[str, str], ...]:
    """The ending and the hash of every file."""
    found = []
    for file in sources.files:
        status = file.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        inner = Path(file.stem).suffix if file.suffix.lower() == ".gz" else ""
        found.append(((inner + file.suffix).lower(), _file_digest(file.resolve(), stamp)))
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def _file_digest(path: Path, stamp: tuple[int, int, int]) -> str:
    """SHA-256 of a file that has not changed as long as its size, time and inode have not."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


class _Piece(NamedTuple):
    """A document or a piece of one: a number for the document, one for the piece in it."""

    document: int
    number: int
    text: Document


class _Reader:
    """All documents of the sources in order, cut where they are few."""

    def __init__(self, sources: Sources, faults: Faults, column: str | None, encoding: str) -> None:
        self.sources, self.faults, self.column, self.encoding = sources, faults, column, encoding
        self.piece = piece_size(sources.bytes) if self._few() else 0
        self.faults.count = 0

    def __iter__(self) -> Iterator[_Piece]:
        self.faults.count = 0
        document = number = -1
        for path in self.sources.files:
            for part in self._read(path):
                for piece in pieces(part, self.piece) if self.piece else (part,):
                    number += 1
                    if piece.first:
                        document, number = document + 1, 0
                    yield _Piece(document, number, piece)

    def texts(self) -> Iterator[Document]:
        """The same without numbers."""
        return (piece.text for piece in self)

    def _read(self, path: Path) -> Iterator[Document]:
        return read_documents(path, self.faults, self.column, self.encoding)

    def _few(self) -> bool:
        count = 0
        for path in self.sources.files:
            for part in self._read(path):
                count += 1
                if count == FEW:
                    return False
                if not part.last:  # the only document of its file, whose other parts need not be read
                    break
        return True


def _kept_tokenizer(folder: Path, reader: _Reader, contents: Any, wishes: _Wishes, say: Progress) -> Tokenizer:
    """The tokenizer of an interrupted call with the same wishes, or one trained now."""
    wish = {"contents": [list(each) for each in contents], **asdict(wishes)}
    note, made_before = folder / "tokenizer-wish.json", folder / "tokenizer.json"
    if note.exists() and made_before.exists():
        wished = {**wish, "sha256": hashlib.sha256(made_before.read_bytes()).hexdigest()}
        if json.loads(note.read_text()) == wished:
            return tokenizer_from_folder(folder)
    say(0.0, f"training a tokenizer ({wishes.kind})")
    made = train_tokenizer(sample(reader.texts(), reader.sources.bytes), wishes.kind, wishes.vocabulary)
    save_tokenizer(made, folder)
    with atomic_write(note) as file:
        json.dump({**wish, "sha256": hashlib.sha256(made_before.read_bytes()).hexdigest()}, file)
    return tokenizer_from_folder(folder)


def sample(documents: Iterable[Document], size: int, most: int = 0) -> Iterator[str]:
    """Of documents of `size` bytes in all, texts spread over them, `most` or `_TO_TRAIN_ON` characters together."""
    most = most or _TO_TRAIN_ON
    stride, taken = max(1, size // most), 0
    for number, document in enumerate(documents):
        if taken >= most:
            return
        if number % stride == 0:
            taken += len(document.text)
            yield document.text


def measure_bytes_per_token(
    sources: Sources, tokenizer: Tokenizer | None = None, kind: TokenizerKind = "bpe", vocabulary: int = 4096, *,
    skip_bad: bool = False, column: str | None = None, encoding: str = "utf-8",
) -> float:  # fmt: skip
    """UTF-8 bytes a token of the text, on a sample of it: of `tokenizer`, or of one of `kind` made for the sample."""
    if tokenizer is None and kind == "bytes":
        return 1.0
    reader = _Reader(sources, Faults(skip_bad), column, check_encoding(encoding))
    texts = list(sample(reader.texts(), sources.bytes, _TO_MEASURE_ON))
    tokenizer = tokenizer or train_tokenizer(texts, kind, vocabulary)
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


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
    beside = [folder / f"{part.name}.pieces.npy" for part in parts]
    beside += [folder / f"{part.name}.hashes.npy" for part in manifest.train]
    whole = all(file.exists() and file.stat().st_size == size for file, size in files)
    return whole and all(file.exists() for file in beside)


def _tokenize(folder: Path, manifest: Manifest, reader: _Reader, tokenizer: Tokenizer, say: Progress) -> None:
    settings, done, whole = manifest.settings, 0, max(1, reader.sources.bytes)
    shift = _SHIFT if whole > _SMALL else 0
    if shift:  # so large that reading it takes a while
        say(0.0, "choosing what to hold out")
    heldout = choose_heldout(reader.texts(), settings.holdout, shift)
    new = partial(_Shard, tokenizer, settings.end, heldout, shift)
    shard, held, size = new(), list[_Piece](), 0
    for number, piece in enumerate(reader):
        done += len(piece.text.text)
        if number < manifest.pieces:  # in a shard that was written before
            continue
        held.append(piece)
        size += len(piece.text.text)
        if size >= _BATCH:
            shard.add(held)
            held, size = [], 0
            say(min(1.0, done / whole), "tokenizing")
            if shard.characters >= _SHARD:
                shard.write(folder, manifest, reader.faults.count)
                shard = new()
    shard.add(held)
    if shard.hashes or not manifest.train:
        shard.write(folder, manifest, reader.faults.count)
    manifest.broken = reader.faults.count
    manifest.duplicates = _duplicates(folder, manifest)
    _check_enough(manifest)
    if _contents(reader.sources) != settings.sources:
        raise RunError("the text changed while it was read; prepare it again when nothing writes to it")
    manifest.complete = True
    manifest.write(folder)
    say(1.0, "tokenizing")


class _Shard:
    """Tokens gathered until they are written: one file a side."""

    def __init__(self, tokenizer: Tokenizer, end: int, heldout: frozenset[int], shift: int) -> None:
        self.tokenizer, self.end, self.heldout, self.shift = tokenizer, end, heldout, shift
        self.dtype = _dtype(tokenizer.vocabulary)
        self.sides: dict[str, list[NDArray[Any]]] = {"train": [], "heldout": []}
        self.pieces: dict[str, list[tuple[int, int, int, bool]]] = {"train": [], "heldout": []}
        self.bytes = {"train": 0, "heldout": 0}
        self.hashes: list[int] = []
        self.characters = 0

    def add(self, pieces: list[_Piece]) -> None:
        """Tokenize texts over all cores. A document begins with the end-of-text token (streams.py)."""
        texts = [piece.text.text for piece in pieces]
        for piece, text, ids in zip(pieces, texts, self.tokenizer.encode_batch(texts), strict=True):
            digest = hash_of(text)
            side = "heldout" if digest >> self.shift in self.heldout else "train"
            tokens = [self.end, *ids] if piece.number == 0 else ids
            self.sides[side].append(np.array(tokens, self.dtype))
            self.pieces[side].append((len(tokens), piece.document, piece.number, piece.text.last))
            self.bytes[side] += len(text.encode())
            self.hashes.append(digest)
            self.characters += len(text)

    def write(self, folder: Path, manifest: Manifest, broken: int) -> None:
        """Write both files and say so in the manifest, in this order."""
        for side, parts in (("train", manifest.train), ("heldout", manifest.heldout)):
            name = f"{side}-{len(parts):05d}"
            tokens = np.concatenate([*self.sides[side], np.zeros(0, self.dtype)])
            pieces = np.array(self.pieces[side], _PIECE)
            with atomic_write(folder / f"{name}.bin", "wb") as file:
                file.write(tokens.tobytes())
            with atomic_write(folder / f"{name}.pieces.npy", "wb") as file:
                np.save(file, pieces)
            digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (tokens, pieces)]
            parts.append(Part(name, len(tokens), self.bytes[side], *digests))
        with atomic_write(folder / f"{manifest.train[-1].name}.hashes.npy", "wb") as file:
            np.save(file, np.array(self.hashes, np.uint64))
        manifest.pieces += len(self.hashes)
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


def _pieces(folder: Path, part: Part) -> NDArray[np.void]:
    path = folder / f"{part.name}.pieces.npy"
    try:
        pieces: NDArray[np.void] = np.load(path)
    except (OSError, ValueError, EOFError):
        pieces = np.empty(0, _PIECE)
    if pieces.dtype != _PIECE or hashlib.sha256(pieces.tobytes()).hexdigest() != part.pieces_sha256:
        raise UsageError(f"{path} is not as it was written; prepare the data anew")
    return pieces


def _segments(pieces: NDArray[np.void]) -> Segments:
    """Pieces that follow each other in one document, in one segment."""
    document, number = pieces["document"].astype(np.int64), pieces["number"].astype(np.int64)
    begins = np.flatnonzero((np.diff(document, prepend=-1) != 0) | (np.diff(number, prepend=-1) != 1))
    last = np.append(begins, len(pieces))[1:] - 1
    lengths = np.diff(np.cumsum(pieces["tokens"], dtype=np.int64)[last], prepend=0)
    some = lengths > 0
    return Segments.of(lengths[some], pieces["last"][last][some], document[begins][some])


def _stream(folder: Path, manifest: Manifest, side: Literal["train", "heldout"]) -> TokenStream:
    """One side's files as a stream. Raises UsageError where a file is missing or cut off."""
    dtype = _dtype(manifest.settings.vocabulary)
    parts: list[Part] = [part for part in getattr(manifest, side) if part.tokens]
    for part in parts:
        path = folder / f"{part.name}.bin"
        if not path.exists() or path.stat().st_size != part.tokens * dtype.itemsize:
            raise UsageError(f"{path} is not its {part.tokens:,} tokens; prepare the data anew")

    def segments() -> Segments:
        return _segments(np.concatenate([np.empty(0, _PIECE), *(_pieces(folder, part) for part in parts)]))

    return TokenStream(
        [folder / f"{part.name}.bin" for part in parts],
        [part.tokens for part in parts],
        segments,
        dtype.str,
        manifest.settings.end,
        sum(part.bytes for part in parts),
        hashlib.sha256("".join(part.sha256 + part.pieces_sha256 for part in parts).encode()).hexdigest(),
    )
