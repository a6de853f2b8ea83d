"""Text → token shards: parallel tokenization, a train/val split by document, resumable.

`prepare_in` names a folder by a hash of everything its tokens depend on, and never writes to an existing one: the
data a run reads does not change while other data is prepared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import RunError, UsageError, atomic_write, locked, open_regular
from ..plan.run_config import DataConfig
from ..text import Tokenizer, tokenizer_from_folder
from .dataset import FORMAT, PIECE, Dataset, Manifest, Shard, TokenSettings, open_dataset, token_dtype
from .documents import Document, Faults, Sources, check_encoding, find_sources, read_documents
from .splitting import FEW, choose_val, hash_of, piece_size, pieces
from .tokenizer_training import TOKENIZERS, save_tokenizer, train_tokenizer

_BATCH = 1 << 20  # characters tokenized at a time, over all cores
_SHARD = 32 << 20  # characters per shard
_TO_TRAIN_ON = 24 << 20  # characters to train a tokenizer on
_TO_MEASURE_ON = 2 << 20  # characters to measure bytes per token on
_SMALL = 64 << 20  # bytes of text up to which pieces are hashed individually when the validation text is chosen
_SHIFT = 52  # bits dropped from the hashes of a larger text: 4,096 groups
_OURS = re.compile(r"manifest\.json|(train|val)-\d{5,}\.(bin|pieces\.npy|hashes\.npy)")
_VOCABULARY = 4096  # default of a bpe tokenizer

Progress = Callable[[float, str], None]
Log = Callable[[str], None]


def prepare(
    paths: Sequence[Path | str] | Sources, folder: Path | str, config: DataConfig = DataConfig(),  # noqa: B008 - frozen
    tokenizer: Tokenizer | None = None, progress: Progress = lambda share, stage: None,
) -> Dataset:  # fmt: skip
    """Tokenize text into `folder`, or continue an interrupted call, and return the dataset.

    Without a `tokenizer`, one of the kind in `config` is first trained on the text. About `val_fraction` of the text
    is held out: documents chosen by a hash of their text, so that equal texts are in one split. With fewer than 20
    documents, pieces of them are split instead. `progress` gets the share done and the stage.

    Data prepared with other settings in `folder` is replaced; use `prepare_in` if something may be reading it.

    Raises UsageError for text that is missing, broken or too short, RunError if `folder` cannot be written.
    """
    folder, sources = Path(folder), _check(paths, config, tokenizer)
    try:
        contents = _contents(sources)
        reader = _Reader(sources, config)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or _kept_tokenizer(folder, reader, contents, progress)
        settings = TokenSettings(
            sources=contents, tokenizer=_digest_of(tokenizer), vocabulary=tokenizer.vocabulary, end=_end(tokenizer),
            val_fraction=config.val_fraction, piece=reader.piece, column=config.column,
            skip_invalid=config.skip_invalid, encoding=reader.encoding,
        )  # fmt: skip
        manifest = _begin(folder, settings, tokenizer)
        if not manifest.complete:
            _tokenize(folder, manifest, reader, tokenizer, progress)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(
            f"{folder}: the tokens could not be written ({reason}); the next call continues there"
        ) from error
    return Dataset(folder, manifest)


def prepare_in(
    store: Path, paths: Sequence[Path | str] | Sources, config: DataConfig = DataConfig(),  # noqa: B008 - frozen
    tokenizer: Tokenizer | None = None, progress: Progress = lambda share, stage: None, log: Log = lambda text: None,
) -> Dataset:  # fmt: skip
    """As `prepare`, in a folder of `store` named by its content; an existing one is only read.

    It is written under a temporary name and renamed when complete. If two processes need the same data, one prepares
    it and the other waits, which is logged.
    """
    sources = _check(paths, config, tokenizer)
    folder, making = store / _content_name(sources, tokenizer, config), store / ".making"
    if (dataset := _complete(folder)) is not None:
        return dataset
    try:
        making.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{making}: cannot be created ({(error.strerror or str(error)).lower()})") from None
    with locked(making / f"{folder.name}.lock", lambda: log("another command prepares this text; waiting for it")):
        if (dataset := _complete(folder)) is not None:
            return dataset
        prepare(sources, making / folder.name, config, tokenizer, progress)
        damaged = making / f"{folder.name}.damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        if folder.exists():  # incomplete or damaged; a process that has mapped it can still read it
            os.rename(folder, damaged)
        os.rename(making / folder.name, folder)
        shutil.rmtree(damaged, ignore_errors=True)
    return open_dataset(folder)


def _check(paths: Sequence[Path | str] | Sources, config: DataConfig, tokenizer: Tokenizer | None) -> Sources:
    if tokenizer is None and config.tokenizer not in TOKENIZERS:
        raise UsageError(f"tokenizer {config.tokenizer!r} is not known. Known: {', '.join(TOKENIZERS)}")
    encoding = check_encoding(config.encoding)
    return paths if isinstance(paths, Sources) else find_sources(paths, encoding)


def _complete(folder: Path) -> Dataset | None:
    try:
        return open_dataset(folder)
    except UsageError:
        return None


def _content_name(sources: Sources, tokenizer: Tokenizer | None, config: DataConfig) -> str:
    """A folder name: a hash of everything its tokens depend on."""
    try:
        contents = _contents(sources)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    key = json.dumps([FORMAT, contents, _wanted(config, tokenizer)], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _wanted(config: DataConfig, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The parts of `config` that the tokens depend on, as plain data, with the encoding's canonical name."""
    values = asdict(config) | {"encoding": check_encoding(config.encoding)}
    bpe = tokenizer is None and config.tokenizer == "bpe"
    values["vocabulary"] = (config.vocabulary or _VOCABULARY) if bpe else 0
    if tokenizer is not None:
        values["tokenizer"] = [_digest_of(tokenizer), _end(tokenizer)]
    return values


def _contents(sources: Sources) -> tuple[tuple[str, str], ...]:
    """The extension and hash of every file."""
    contents = []
    for file in sources.files:
        status = file.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        inner = Path(file.stem).suffix if file.suffix.lower() == ".gz" else ""
        contents.append(((inner + file.suffix).lower(), _file_digest(file.resolve(), stamp)))
    return tuple(contents)


@lru_cache(maxsize=1 << 16)
def _file_digest(path: Path, stamp: tuple[int, int, int]) -> str:
    """SHA-256 of a file, cached by its size, modification time and inode."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


class _Piece(NamedTuple):
    """A document or a piece of one: the document's number, and the piece's number in it."""

    document: int
    number: int
    text: Document


class _Reader:
    """All documents of the sources in order, cut into pieces if they are few."""

    def __init__(self, sources: Sources, config: DataConfig) -> None:
        self.sources, self.config, self.encoding = sources, config, check_encoding(config.encoding)
        self.faults = Faults(config.skip_invalid)
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
        """The texts alone."""
        return (piece.text for piece in self)

    def _read(self, path: Path) -> Iterator[Document]:
        return read_documents(path, self.faults, self.config.column, self.encoding)

    def _few(self) -> bool:
        count = 0
        for path in self.sources.files:
            for part in self._read(path):
                count += 1
                if count == FEW:
                    return False
                if not part.last:  # the file's only document: its other parts need not be read
                    break
        return True


def _kept_tokenizer(folder: Path, reader: _Reader, contents: Any, progress: Progress) -> Tokenizer:
    """The tokenizer from an interrupted call with the same settings, or a newly trained one."""
    config, note, file = reader.config, folder / "tokenizer-settings.json", folder / "tokenizer.json"
    settings = {"contents": [list(content) for content in contents], **_wanted(config)}

    def with_digest() -> dict[str, Any]:
        return {**settings, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    if note.exists() and file.exists() and json.loads(note.read_text()) == with_digest():
        return tokenizer_from_folder(folder)
    progress(0.0, f"training a tokenizer ({config.tokenizer})")
    texts = sample(reader.texts(), reader.sources.bytes)
    save_tokenizer(train_tokenizer(texts, config.tokenizer, config.vocabulary or _VOCABULARY), folder)
    with atomic_write(note) as writing:
        json.dump(with_digest(), writing)
    return tokenizer_from_folder(folder)


def sample(documents: Iterable[Document], size: int, most: int = 0) -> Iterator[str]:
    """Texts spread over documents of `size` bytes in total, at most `most` or `_TO_TRAIN_ON` characters."""
    most = most or _TO_TRAIN_ON
    stride, taken = max(1, size // most), 0
    for number, document in enumerate(documents):
        if taken >= most:
            return
        if number % stride == 0:
            taken += len(document.text)
            yield document.text


def measure_bytes_per_token(sources: Sources, config: DataConfig, tokenizer: Tokenizer | None = None) -> float:
    """UTF-8 bytes per token on a sample of the text, with `tokenizer` or one trained on the sample."""
    if tokenizer is None and config.tokenizer == "bytes":
        return 1.0
    texts = list(sample(_Reader(sources, config).texts(), sources.bytes, _TO_MEASURE_ON))
    tokenizer = tokenizer or train_tokenizer(texts, config.tokenizer, config.vocabulary or _VOCABULARY)
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


def _begin(folder: Path, settings: TokenSettings, tokenizer: Tokenizer) -> Manifest:
    """The manifest in `folder` if it has the same settings; otherwise an empty one."""
    try:
        manifest = Manifest.read(folder)
        if manifest.settings == settings and _files_exist(folder, manifest):
            return manifest
    except UsageError:
        pass
    _remove_shards(folder)
    save_tokenizer(tokenizer, folder)
    manifest = Manifest(settings)
    manifest.write(folder)
    return manifest


def _remove_shards(folder: Path) -> None:
    """Remove the files of another `prepare`, and nothing else: the folder may hold the text itself."""
    for old in folder.iterdir():
        if _OURS.fullmatch(old.name):
            old.unlink()


def _files_exist(folder: Path, manifest: Manifest) -> bool:
    width = token_dtype(manifest.settings.vocabulary).itemsize
    shards = (*manifest.train, *manifest.val)
    sizes = {folder / f"{shard.name}.bin": shard.tokens * width for shard in shards}
    others = [folder / f"{shard.name}.pieces.npy" for shard in shards]
    others += [folder / f"{shard.name}.hashes.npy" for shard in manifest.train]
    complete = all(file.exists() and file.stat().st_size == size for file, size in sizes.items())
    return complete and all(file.exists() for file in others)


def _tokenize(folder: Path, manifest: Manifest, reader: _Reader, tokenizer: Tokenizer, progress: Progress) -> None:
    settings, done, size_of_all = manifest.settings, 0, max(1, reader.sources.bytes)
    shift = _SHIFT if size_of_all > _SMALL else 0
    if shift:  # large enough that reading takes a while
        progress(0.0, "choosing the validation text")
    val = choose_val(reader.texts(), settings.val_fraction, shift)
    new = partial(_Shard, tokenizer, settings.end, val, shift)
    shard, held, size = new(), list[_Piece](), 0
    for number, piece in enumerate(reader):
        done += len(piece.text.text)
        if number < manifest.pieces:  # already in a written shard
            continue
        held.append(piece)
        size += len(piece.text.text)
        if size >= _BATCH:
            shard.add(held)
            held, size = [], 0
            progress(min(1.0, done / size_of_all), "tokenizing")
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
        raise RunError("the text changed while it was being read; prepare it again when nothing writes to it")
    manifest.complete = True
    manifest.write(folder)
    progress(1.0, "tokenizing")


class _Shard:
    """Tokens collected until they are written: one file per split."""

    def __init__(self, tokenizer: Tokenizer, end: int, val: frozenset[int], shift: int) -> None:
        self.tokenizer, self.end, self.val, self.shift = tokenizer, end, val, shift
        self.dtype = token_dtype(tokenizer.vocabulary)
        self.sides: dict[str, list[NDArray[Any]]] = {"train": [], "val": []}
        self.pieces: dict[str, list[tuple[int, int, int, bool]]] = {"train": [], "val": []}
        self.bytes = {"train": 0, "val": 0}
        self.hashes: list[int] = []
        self.characters = 0

    def add(self, pieces: list[_Piece]) -> None:
        """Tokenize texts on all cores. A document begins with the end-of-text token (streams.py)."""
        texts = [piece.text.text for piece in pieces]
        for piece, text, ids in zip(pieces, texts, self.tokenizer.encode_batch(texts), strict=True):
            digest = hash_of(text)
            side = "val" if digest >> self.shift in self.val else "train"
            tokens = [self.end, *ids] if piece.number == 0 else ids
            self.sides[side].append(np.array(tokens, self.dtype))
            self.pieces[side].append((len(tokens), piece.document, piece.number, piece.text.last))
            self.bytes[side] += len(text.encode())
            self.hashes.append(digest)
            self.characters += len(text)

    def write(self, folder: Path, manifest: Manifest, broken: int) -> None:
        """Write both files, then the manifest."""
        for side, shards in (("train", manifest.train), ("val", manifest.val)):
            name = f"{side}-{len(shards):05d}"
            tokens = np.concatenate([*self.sides[side], np.zeros(0, self.dtype)])
            pieces = np.array(self.pieces[side], PIECE)
            with atomic_write(folder / f"{name}.bin", "wb") as file:
                file.write(tokens.tobytes())
            with atomic_write(folder / f"{name}.pieces.npy", "wb") as file:
                np.save(file, pieces)
            digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (tokens, pieces)]
            shards.append(Shard(name, len(tokens), self.bytes[side], *digests))
        with atomic_write(folder / f"{manifest.train[-1].name}.hashes.npy", "wb") as file:
            np.save(file, np.array(self.hashes, np.uint64))
        manifest.pieces += len(self.hashes)
        manifest.broken = broken
        manifest.write(folder)


def _duplicates(folder: Path, manifest: Manifest) -> int:
    hashes = np.concatenate([np.load(folder / f"{shard.name}.hashes.npy") for shard in manifest.train])
    return len(hashes) - len(np.unique(hashes))


def _check_enough(manifest: Manifest) -> None:
    train, val = (sum(shard.tokens for shard in side) for side in (manifest.train, manifest.val))
    if train < 2 or val < 2:
        raise UsageError(
            f"the text gives {train:,} tokens to train on and {val:,} held out; both need a few hundred. Give more"
        )


def _end(tokenizer: Tokenizer) -> int:
    end = min(tokenizer.stop_ids, default=None)
    if end is None:
        raise UsageError(f"{tokenizer.name} has no end-of-text token; use another tokenizer")
    return end
