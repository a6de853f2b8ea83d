"""Documents → shards of tokens: tokenized on all cores while the next documents are read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError, atomic_write
from ..text import Tokenizer
from .conversations import Turn, encode_conversation
from .dataset import PIECE, Manifest, Shard, token_dtype
from .documents import Document, Faults
from .duplicates import DocumentHashes
from .reader import Piece, Reader
from .scripts import count_scripts
from .splitting import choose_val, hash_of

BATCH = 1 << 20  # characters tokenized at a time, over all cores
SHARD = 32 << 20  # characters per shard
SMALL = 64 << 20  # bytes of text up to which pieces are hashed individually when the validation text is chosen
_SHIFT = 52  # bits dropped from the hashes of a larger text: 4,096 groups

Progress = Callable[[float, str], None]


def tokenize(folder: Path, manifest: Manifest, reader: Reader, tokenizer: Tokenizer, progress: Progress) -> None:
    """Write the shards that `manifest` does not have yet, and fill it in, but for `complete`."""
    shift = _SHIFT if reader.sources.bytes > SMALL else 0
    val, characters = _survey(manifest, reader, shift, progress)
    encoder = Encoder(tokenizer, manifest.settings.end, reader.config.skip_invalid)
    shard, size = _Shard(encoder.dtype, val, shift), 0
    for batch in _ahead(encoder.encode, _batches(reader, manifest.pieces)):
        shard.add(batch)
        size += batch.characters
        progress(min(1.0, batch.read / max(1, characters)), "tokenizing")
        if size >= SHARD:
            shard.write(folder, manifest)
            shard, size = _Shard(encoder.dtype, val, shift), 0
    if shard.count or not manifest.train:
        shard.write(folder, manifest)
    manifest.broken += reader.faults.count
    files = {f"file ({reason})": count for reason, count in (reader.sources.unread | reader.sources.skipped).items()}
    manifest.skipped = dict(Counter(manifest.skipped) + reader.faults.reasons + Counter(files))
    progress(1.0, "tokenizing")


def _survey(manifest: Manifest, reader: Reader, shift: int, progress: Progress) -> tuple[frozenset[int], int]:
    """The hashes to hold out, and the characters to tokenize; duplicates are counted, and dropped if configured."""
    share, hashes, size = manifest.settings.val_fraction, DocumentHashes(), reader.sources.bytes

    def texts() -> Iterator[Document]:
        for text in reader.texts():
            if shift:  # large enough that reading takes a while
                progress(min(0.99, hashes.characters / size), "choosing the validation text")
            yield text

    val = choose_val(hashes.watch(texts()), share, shift)
    repeats = hashes.repeats()
    manifest.documents, manifest.duplicates = len(repeats), int(repeats.sum())
    if not (manifest.settings.deduplicate and manifest.duplicates):
        return val, hashes.characters
    reader.dropped, hashes = repeats, DocumentHashes()
    return choose_val(hashes.watch(texts()), share, shift), hashes.characters


class _Unread(NamedTuple):
    """Pieces to tokenize together, and the characters read with and before them."""

    pieces: list[Piece]
    read: int


def _batches(reader: Reader, skip: int) -> Iterator[_Unread]:
    """All pieces but the first `skip`, about `BATCH` characters at a time."""
    pieces, size, read = list[Piece](), 0, 0
    for number, piece in enumerate(reader):
        read += len(piece.text.text)
        if number < skip:  # already in a written shard
            continue
        pieces.append(piece)
        size += len(piece.text.text)
        if size >= BATCH:
            yield _Unread(pieces, read)
            pieces, size = [], 0
    if pieces:
        yield _Unread(pieces, read)


In = TypeVar("In")
Out = TypeVar("Out")


def _ahead(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """The results of `work` in order, computed in a thread while the next of `items` are made."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[Out] | None = None
        for item in items:
            following = pool.submit(work, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


class _Encoded(NamedTuple):
    """The tokens of pieces, as rows of the table and arrays of ids; their hashes, and what was counted on the way."""

    pieces: list[tuple[int, list[tuple[NDArray[Any], tuple[Any, ...]]]]]  # hash → ids and row of `PIECE`, each
    faults: Faults
    scripts: Counter[str]
    characters: int
    read: int


class Encoder:
    """Tokenizes pieces. A document begins with the end-of-text token (streams.py)."""

    def __init__(self, tokenizer: Tokenizer, end: int, skip_invalid: bool) -> None:
        self.tokenizer, self.skip_invalid = tokenizer, skip_invalid
        self.dtype = token_dtype(tokenizer.vocabulary)
        self.end = np.array([end], self.dtype)

    def encode(self, batch: _Unread) -> _Encoded:
        """Tokenize a batch on all cores."""
        texts = [piece.text.text for piece in batch.pieces if not piece.text.conversation]
        plain = iter(self.tokenizer.encode_batch(texts))
        faults, encoded = Faults(self.skip_invalid), []
        for piece in batch.pieces:
            text = piece.text.text
            if piece.text.conversation:
                turns = self._turns(piece, faults)
            else:
                turns = [Turn(text, next(plain), True)]
            encoded.append((hash_of(text), self._rows(piece, turns)))
        scripts = count_scripts(piece.text.text.encode() for piece in batch.pieces)
        return _Encoded(encoded, faults, scripts, sum(len(piece.text.text) for piece in batch.pieces), batch.read)

    def _turns(self, piece: Piece, faults: Faults) -> list[Turn]:
        """The turns of a conversation; none if it is broken and to be skipped."""
        try:
            return encode_conversation(self.tokenizer, piece.text.text)
        except UsageError as error:
            if self.tokenizer.chat_template is None:
                raise UsageError(
                    f"{piece.text.source}: a conversation needs a model with a chat template, and {error}. Name one:"
                    " --model NAME"
                ) from None
            faults.meet(f"{piece.text.source}: {error}", reason="conversation that the template refuses")
            return []

    def _rows(self, piece: Piece, turns: list[Turn]) -> list[tuple[NDArray[Any], tuple[Any, ...]]]:
        rows = []
        for number, turn in enumerate(turns, piece.number):
            ids = np.asarray(turn.ids, self.dtype)
            if number == 0:
                ids = np.concatenate([self.end, ids])
            # A conversation ends with the token that ends its turn: that it ends there is not learned.
            last = piece.text.last and not piece.text.conversation
            rows.append((ids, (len(ids), len(turn.text.encode()), piece.document, number, last, turn.learned)))
        return rows


class _Shard:
    """Tokens collected until they are written: one file per split."""

    def __init__(self, dtype: np.dtype[Any], val: frozenset[int], shift: int) -> None:
        self.val, self.shift = val, shift
        self.tokens: dict[str, list[NDArray[Any]]] = {side: [np.zeros(0, dtype)] for side in ("train", "val")}
        self.rows: dict[str, list[tuple[Any, ...]]] = {"train": [], "val": []}
        self.faults, self.scripts = Faults(skip=True), Counter[str]()
        self.count = 0

    def add(self, batch: _Encoded) -> None:
        """Take the pieces of a batch, each to its side."""
        for digest, rows in batch.pieces:
            side = "val" if digest >> self.shift in self.val else "train"
            for ids, row in rows:
                self.tokens[side].append(ids)
                self.rows[side].append(row)
        self.count += len(batch.pieces)
        self.scripts += batch.scripts
        self.faults.count += batch.faults.count
        self.faults.reasons += batch.faults.reasons

    def write(self, folder: Path, manifest: Manifest) -> None:
        """Write both files, then the manifest."""
        for side, shards in (("train", manifest.train), ("val", manifest.val)):
            name = f"{side}-{len(shards):05d}"
            tokens, pieces = np.concatenate(self.tokens[side]), np.array(self.rows[side], PIECE)
            with atomic_write(folder / f"{name}.bin", "wb") as file:
                file.write(tokens.data)
            with atomic_write(folder / f"{name}.pieces.npy", "wb") as file:
                np.save(file, pieces)
            digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (tokens, pieces)]
            shards.append(Shard(name, len(tokens), int(pieces["bytes"].sum(dtype=np.int64)), *digests))
        manifest.pieces += self.count
        manifest.broken += self.faults.count
        manifest.skipped = dict(Counter(manifest.skipped) + self.faults.reasons)
        manifest.scripts = dict(Counter(manifest.scripts) + self.scripts)
        manifest.write(folder)
