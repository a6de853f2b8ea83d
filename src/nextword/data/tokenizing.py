"""Documents → shards of tokens: tokenized on all cores while the next documents are read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError, atomic_write, read_json, return_freed_memory
from ..text import Tokenizer, tokenizer_from_folder
from .conversations import Turn, encode_conversation
from .dataset import PIECE, Shard, token_dtype
from .documents import Faults
from .reader import Advance, Piece, Reader
from .scripts import count_scripts
from .splitting import hash_of_bytes
from .survey import Survey

BATCH = 1 << 20  # characters tokenized at a time, over all cores
SIDES = ("train", "val")


@dataclass(frozen=True)
class Job:
    """All that the tokens of a shard depend on, and the folder it is written to. Pickled without its tokenizer."""

    folder: Path
    reader: Reader
    survey: Survey
    end: int  # id of the end-of-text token
    tokenizer: Tokenizer | None  # None: the one saved in the folder, with these chat templates
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Job, (self.folder, self.reader, self.survey, self.end, None, self.chat_templates)

    def encoder(self) -> Encoder:
        """Of this job."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            tokenizer = tokenizer_from_folder(self.folder)
            tokenizer.chat_templates = self.chat_templates
        return Encoder(tokenizer, self.end, self.reader.config.skip_invalid)


@dataclass(frozen=True)
class ShardReport:
    """A finished shard: its files, and what was counted on the way."""

    train: Shard
    val: Shard
    broken: int
    skipped: dict[str, int]
    scripts: dict[str, int]

    @classmethod
    def read(cls, folder: Path, number: int) -> ShardReport | None:
        """None where the shard is not finished, or where a file of it is gone."""
        try:
            values = read_json(_report(folder, number))
            train, val = (Shard(**values.pop(side)) for side in SIDES)
            report = cls(train, val, **values)
        except (UsageError, TypeError, KeyError):
            return None
        files = (folder / f"{shard.name}{ending}" for shard in (train, val) for ending in (".bin", ".pieces.npy"))
        return report if all(file.exists() for file in files) else None


def _report(folder: Path, number: int) -> Path:
    return folder / WORK / f"shard-{number:05d}.json"


WORK = ".work"  # the subfolder of what an interrupted preparation continues from


def make_shards(job: Job, numbers: range, advance: Advance) -> None:
    """Tokenize consecutive parts of the text, each into a shard. `advance` is given the characters that were read."""
    encoder = job.encoder()
    for number, batches in groupby(_ahead(encoder.encode, _batches(job, numbers)), key=lambda batch: batch.part):
        shard = _Shard(encoder.dtype, job.survey)
        for batch in batches:
            shard.add(batch)
            advance(batch.characters)
        shard.write(job.folder, number)
        return_freed_memory()


class _Numbered(NamedTuple):
    """A piece with the number of its document among all."""

    document: int
    piece: Piece


class _Unread(NamedTuple):
    """Pieces of one part to tokenize together, and the characters read with them: more, where some are dropped."""

    part: int
    pieces: list[_Numbered]
    characters: int


def _batches(job: Job, numbers: range) -> Iterator[_Unread]:
    """The pieces of parts, about `BATCH` characters at a time; at least one batch for each part."""
    survey, first = job.survey, job.survey.parts[numbers.start]
    pieces = islice(job.reader.read(range(first.file, len(job.reader.files))), first.skipped, None)
    for number in numbers:
        document, batch, read = survey.before[number] - 1, list[_Numbered](), 0
        for piece in islice(pieces, survey.parts[number].pieces):
            document += piece.number == 0
            read += len(piece.text.text)
            if not survey.is_dropped(document):
                batch.append(_Numbered(document, piece))
            if read >= BATCH:
                yield _Unread(number, batch, read)
                batch, read = [], 0
        yield _Unread(number, batch, read)


In = TypeVar("In")
Out = TypeVar("Out")


def _ahead(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """The results of `work` in order, computed in two threads while the next of `items` are made.

    While the tokenizer is busy in one, the other turns the results of the batch before into arrays.
    """
    with ThreadPoolExecutor(2) as pool:
        pending: deque[Future[Out]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Encoded(NamedTuple):
    """The tokens of pieces one after the other, their rows of the table and hashes; what was counted on the way."""

    part: int
    tokens: NDArray[Any]
    rows: NDArray[np.void]  # of `PIECE`
    hashes: NDArray[np.uint64]  # of the piece of each row
    faults: Faults
    scripts: Counter[str]
    characters: int


class Encoder:
    """Tokenizes pieces. A document begins with the end-of-text token (streams.py)."""

    def __init__(self, tokenizer: Tokenizer, end: int, skip_invalid: bool) -> None:
        self.tokenizer, self.end, self.skip_invalid = tokenizer, end, skip_invalid
        self.dtype = token_dtype(tokenizer.vocabulary)

    def encode(self, batch: _Unread) -> _Encoded:
        """Tokenize a batch on all cores."""
        texts = [piece.text.text for _, piece in batch.pieces]
        data, faults = [text.encode() for text in texts], Faults(self.skip_invalid)
        plain = iter(self.tokenizer.encode_batch([p.text.text for _, p in batch.pieces if not p.text.conversation]))
        ids, rows, hashes = list[Any](), list[tuple[Any, ...]](), list[int]()
        for (document, piece), text in zip(batch.pieces, data, strict=True):
            before = len(rows)
            if piece.text.conversation:
                for number, turn in enumerate(self._turns(piece, faults)):
                    # A conversation ends with the token that ends its turn: that it ends there is not learned.
                    rows.append((len(turn.ids), len(turn.text.encode()), document, number, False, turn.learned))
                    ids.append(turn.ids)
            else:
                ids.append(next(plain))
                rows.append((len(ids[-1]), len(text), document, piece.number, piece.text.last, True))
            hashes += [hash_of_bytes(text)] * (len(rows) - before)
        table = np.array(rows, PIECE)
        return _Encoded(
            batch.part, self._with_ends(ids, table), table, np.array(hashes, np.uint64), faults,
            count_scripts(data), batch.characters,
        )  # fmt: skip

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

    def _with_ends(self, ids: list[Any], table: NDArray[np.void]) -> NDArray[Any]:
        """All tokens, with the end-of-text token before each document, which its first row then counts."""
        tokens = np.concatenate([np.empty(0, self.dtype), *ids], dtype=self.dtype, casting="unsafe")
        starts = np.cumsum(table["tokens"], dtype=np.int64) - table["tokens"]
        begins = table["number"] == 0
        table["tokens"] += begins
        return np.insert(tokens, starts[begins], np.array(self.end, self.dtype))


class _Shard:
    """Tokens collected until they are written: one file per split."""

    def __init__(self, dtype: np.dtype[Any], survey: Survey) -> None:
        self.val, self.shift = np.array(sorted(survey.held_out), np.uint64), np.uint64(survey.shift)
        self.tokens: dict[str, list[NDArray[Any]]] = {side: [np.empty(0, dtype)] for side in SIDES}
        self.rows: dict[str, list[NDArray[np.void]]] = {side: [np.empty(0, PIECE)] for side in SIDES}
        self.faults, self.scripts = Faults(skip=True), Counter[str]()

    def add(self, batch: _Encoded) -> None:
        """Take the pieces of a batch, each to its side."""
        held_out = np.isin(batch.hashes >> self.shift, self.val)
        tokens = np.repeat(held_out, batch.rows["tokens"])
        for side, rows_of, tokens_of in (("train", ~held_out, ~tokens), ("val", held_out, tokens)):
            self.rows[side].append(batch.rows[rows_of])
            self.tokens[side].append(batch.tokens[tokens_of])
        self.scripts += batch.scripts
        self.faults.count += batch.faults.count
        self.faults.reasons += batch.faults.reasons

    def write(self, folder: Path, number: int) -> None:
        """Write the files of both splits, then the report that makes it count."""
        train, val = (self._write_side(folder, f"{side}-{number:05d}", side) for side in SIDES)
        faults = self.faults
        report = ShardReport(train, val, faults.count, dict(faults.reasons), dict(self.scripts))
        with atomic_write(_report(folder, number)) as file:
            json.dump(asdict(report), file)

    def _write_side(self, folder: Path, name: str, side: str) -> Shard:
        pieces, digest = np.concatenate(self.rows[side]), hashlib.sha256()
        with atomic_write(folder / f"{name}.bin", "wb") as file:
            for tokens in self.tokens[side]:
                file.write(tokens.data)
                digest.update(tokens.data)
        with atomic_write(folder / f"{name}.pieces.npy", "wb") as file:
            np.save(file, pieces)
        size, of_pieces = int(pieces["bytes"].sum(dtype=np.int64)), hashlib.sha256(pieces.data)
        return Shard(name, sum(map(len, self.tokens[side])), size, digest.hexdigest(), of_pieces.hexdigest())
