"""Text → a folder of token shards with a train/val split by document, which an interrupted call continues.

`prepare_in` names a folder by a hash of everything its tokens depend on, and never writes to an existing one: the
data a run reads does not change while other data is prepared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError, atomic_write, locked, open_regular
from ..plan.run_config import DataConfig
from ..text import Tokenizer, tokenizer_from_folder
from .compressed import COMPRESSIONS
from .dataset import FORMAT, Dataset, Manifest, TokenSettings, open_dataset, token_dtype
from .documents import Document, Sources, check_encoding, find_sources
from .reader import Reader, sample
from .tokenizer_training import TOKENIZERS, save_tokenizer, train_tokenizer
from .tokenizing import Progress, tokenize

_TO_MEASURE_ON = 2 << 20  # characters to measure bytes per token on
_OURS = re.compile(r"manifest\.json|(train|val)-\d{5,}\.(bin|pieces\.npy)")
_VOCABULARY = 4096  # default of a bpe tokenizer

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
        reader = Reader(sources, config)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or _kept_tokenizer(folder, reader, contents, progress)
        settings = TokenSettings(
            sources=contents, tokenizer=_digest_of(tokenizer), vocabulary=tokenizer.vocabulary, end=_end(tokenizer),
            val_fraction=config.val_fraction, piece=reader.piece, column=config.column,
            skip_invalid=config.skip_invalid, encoding=reader.encoding, deduplicate=config.deduplicate,
        )  # fmt: skip
        manifest = _begin(folder, settings, tokenizer)
        if not manifest.complete:
            tokenize(folder, manifest, reader, tokenizer, progress)
            _check_enough(manifest)
            if _contents(sources) != contents:
                raise RunError("the text changed while it was being read; prepare it again when nothing writes to it")
            manifest.complete = True
            manifest.write(folder)
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


def _contents(sources: Sources) -> str:
    """A hash of the kind and content of every file."""
    contents = hashlib.sha256()
    for file in sources.files:
        status = file.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        suffixes = "".join(Path(file.name.lower()).suffixes[-2 if file.suffix.lower() in COMPRESSIONS else -1 :])
        contents.update(f"{suffixes} {_file_digest(file.absolute(), stamp)}\n".encode())
    return contents.hexdigest()


@lru_cache(maxsize=1 << 20)
def _file_digest(path: Path, stamp: tuple[int, int, int]) -> str:
    """SHA-256 of a file, cached by its size, modification time and inode."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _kept_tokenizer(folder: Path, reader: Reader, contents: str, progress: Progress) -> Tokenizer:
    """The tokenizer from an interrupted call with the same settings, or a newly trained one."""
    config, note, file = reader.config, folder / "tokenizer-settings.json", folder / "tokenizer.json"
    settings = {"contents": contents, **_wanted(config)}

    def with_digest() -> dict[str, Any]:
        return {**settings, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    if note.exists() and file.exists() and json.loads(note.read_text()) == with_digest():
        return tokenizer_from_folder(folder)
    progress(0.0, f"training a tokenizer ({config.tokenizer})")
    texts = sample(_plain(reader), reader.sources.bytes)
    save_tokenizer(train_tokenizer(texts, config.tokenizer, config.vocabulary or _VOCABULARY), folder)
    with atomic_write(note) as writing:
        json.dump(with_digest(), writing)
    return tokenizer_from_folder(folder)


def _plain(reader: Reader) -> Iterator[Document]:
    """The documents, to train a tokenizer on. Raises UsageError for a conversation, which needs a model's own."""
    for document in reader.texts():
        if document.conversation:
            raise UsageError(
                f"{document.source}: a conversation needs a model with a chat template. Name one: --model NAME"
            )
        yield document


def measure_bytes_per_token(sources: Sources, config: DataConfig, tokenizer: Tokenizer | None = None) -> float:
    """UTF-8 bytes per token on a sample of the text, with `tokenizer` or one trained on the sample."""
    if tokenizer is None and config.tokenizer == "bytes":
        return 1.0
    texts = list(sample(_plain(Reader(sources, config)), sources.bytes, _TO_MEASURE_ON))
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
    complete = all(file.exists() and file.stat().st_size == size for file, size in sizes.items())
    return complete and all((folder / f"{shard.name}.pieces.npy").exists() for shard in shards)


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
