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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..base import RunError, UsageError, atomic_write, locked, open_regular, return_freed_memory
from ..plan.run_config import DataConfig
from ..text import Tokenizer, tokenizer_from_folder
from .compressed import COMPRESSIONS
from .dataset import FORMAT, Dataset, Manifest, TokenSettings, open_dataset, token_dtype
from .documents import Document, Sources, check_encoding, find_sources
from .reader import SHARD, Advance, Reader, sample
from .survey import SMALL, Survey, blocks_of, is_surveyed, merge, survey_block
from .tokenizer_training import TOKENIZERS, save_tokenizer, train_tokenizer
from .tokenizing import WORK, Job, ShardReport, make_shards

_TO_MEASURE_ON = 2 << 20  # characters to measure bytes per token on
_OURS = re.compile(r"manifest\.json|(train|val)-\d{5,}\.(bin|pieces\.npy)")
_HALF_WRITTEN = re.compile(rf"\.({_OURS.pattern}|tokenizer[-_a-z]*\.json)\.\w+\.part")  # by a process that was killed
_AT_ONCE = 1 << 20  # bytes of a file hashed at a time
_VOCABULARY = 4096  # default of a bpe tokenizer

Log = Callable[[str], None]
Progress = Callable[[float, str], None]  # is given the share done and the stage
Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(Protocol):
    """Calls a function for each of several items: here one after the other, or on a cluster."""

    def __call__(
        self, function: Callable[[Shared, Item, Advance], Result], shared: Shared, items: Sequence[Item],
        advance: Advance,
    ) -> list[Result]: ...  # fmt: skip

    def ranges(self, numbers: range) -> list[range]:
        """Consecutive numbers as the items of one call."""


class RunHere:
    """`Run` in this process."""

    def __call__(
        self, function: Callable[[Shared, Item, Advance], Result], shared: Shared, items: Sequence[Item],
        advance: Advance,
    ) -> list[Result]:  # fmt: skip
        return [function(shared, item, advance) for item in items]

    def ranges(self, numbers: range) -> list[range]:
        return [numbers]


def prepare(
    paths: Sequence[Path | str] | Sources, folder: Path | str, config: DataConfig = DataConfig(),  # noqa: B008 - frozen
    tokenizer: Tokenizer | None = None, progress: Progress = lambda share, stage: None, run: Run = RunHere(),  # noqa: B008
) -> Dataset:  # fmt: skip
    """Tokenize text into `folder`, or continue an interrupted call, and return the dataset.

    Without a `tokenizer`, one of the kind in `config` is first trained on the text. About `val_fraction` of the text
    is held out: documents chosen by a hash of their text, so that equal texts are in one split. With fewer than 20
    documents, pieces of them are split instead. `progress` gets the share done and the stage.

    Data prepared with other settings in `folder` is replaced; use `prepare_in` if something may be reading it.

    Raises UsageError for text that is missing, broken or too short, RunError if `folder` cannot be written.
    """
    sources = _check(paths, config, tokenizer)
    return _prepare(sources, _contents(sources, progress, run), Path(folder), config, tokenizer, progress, run)


def _prepare(
    sources: Sources, contents: _Contents, folder: Path, config: DataConfig, tokenizer: Tokenizer | None,
    progress: Progress, run: Run,
) -> Dataset:  # fmt: skip
    try:
        reader = Reader(sources, config)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or _kept_tokenizer(folder, reader, contents.digest, sources.bytes, progress)
        settings = TokenSettings(
            sources=contents.digest, tokenizer=_digest_of(tokenizer), vocabulary=tokenizer.vocabulary,
            end=_end(tokenizer), val_fraction=config.val_fraction, piece=reader.piece, column=config.column,
            skip_invalid=config.skip_invalid, encoding=reader.encoding, deduplicate=config.deduplicate,
        )  # fmt: skip
        manifest = _begin(folder, settings, tokenizer)
        if not manifest.complete:
            survey = _survey(folder / WORK, reader, config.val_fraction, progress, run)
            job = Job(folder, reader, survey, settings.end, tokenizer, tokenizer.chat_templates)
            _fill(manifest, survey, sources, _tokenize(job, progress, run))
            _check_enough(manifest)
            if _stamps(sources.files) != contents.stamps:
                raise RunError("the text changed while it was being read; prepare it again when nothing writes to it")
            manifest.complete = True
            manifest.write(folder)
            shutil.rmtree(folder / WORK)
            _remove(folder, _HALF_WRITTEN)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(
            f"{folder}: the tokens could not be written ({reason}); the next call continues there"
        ) from error
    return Dataset(folder, manifest)


def prepare_in(
    store: Path, paths: Sequence[Path | str] | Sources, config: DataConfig = DataConfig(),  # noqa: B008 - frozen
    tokenizer: Tokenizer | None = None, progress: Progress = lambda share, stage: None, log: Log = lambda text: None,
    run: Run = RunHere(),  # noqa: B008
) -> Dataset:  # fmt: skip
    """As `prepare`, in a folder of `store` named by its content; an existing one is only read.

    It is written under a temporary name and renamed when complete. If two processes need the same data, one prepares
    it and the other waits, which is logged.
    """
    sources = _check(paths, config, tokenizer)
    contents = _contents(sources, progress, run)
    folder, making = store / _content_name(contents.digest, tokenizer, config), store / ".making"
    if (dataset := _complete(folder)) is not None:
        return dataset
    try:
        making.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{making}: cannot be created ({(error.strerror or str(error)).lower()})") from None
    with locked(making / f"{folder.name}.lock", lambda: log("another command prepares this text; waiting for it")):
        if (dataset := _complete(folder)) is not None:
            return dataset
        _prepare(sources, contents, making / folder.name, config, tokenizer, progress, run)
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


def _content_name(contents: str, tokenizer: Tokenizer | None, config: DataConfig) -> str:
    """A folder name: a hash of everything its tokens depend on."""
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


@dataclass(frozen=True)
class _Contents:
    """What the files hold: a hash of their kinds and contents, and one of their sizes and times."""

    digest: str
    stamps: str


def _contents(sources: Sources, progress: Progress, run: Run) -> _Contents:
    """Raises RunError where a file cannot be read."""
    try:
        stamps, size = _stamps(sources.files), sources.bytes
        said = progress if size > SMALL else lambda share, stage: None
        advance = _advancing(said, "checking the files", size)
        lists = run(_digests, sources.files, blocks_of(sources.files, SHARD), advance)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    contents = hashlib.sha256()
    for line in (line for lines in lists for line in lines):
        contents.update(line.encode())
    return _Contents(contents.hexdigest(), stamps)


def _digests(files: Sequence[Path], block: range, advance: Advance) -> list[str]:
    """A line for each file: its kind and SHA-256."""
    lines = []
    for file in (files[number] for number in block):
        suffixes = "".join(Path(file.name.lower()).suffixes[-2 if file.suffix.lower() in COMPRESSIONS else -1 :])
        digest = hashlib.sha256()
        with open_regular(file) as reading:
            while data := reading.read(_AT_ONCE):
                digest.update(data)
                advance(len(data))
        lines.append(f"{suffixes} {digest.hexdigest()}\n")
    return lines


def _stamps(files: Sequence[Path]) -> str:
    """A hash of the size, modification time and inode of every file."""
    stamps = hashlib.sha256()
    for status in (file.stat() for file in files):
        stamps.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return stamps.hexdigest()


def _advancing(progress: Progress, stage: str, total: int, done: int = 0) -> Advance:
    """Adds up what is done, and tells `progress` the share of `total`."""

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(min(1.0, done / max(1, total)), stage)

    advance(0)
    return advance


def _survey(folder: Path, reader: Reader, share: float, progress: Progress, run: Run) -> Survey:
    """Read all text that an interrupted call has not read, and decide what is held out and dropped."""
    folder.mkdir(exist_ok=True)
    sizes = [file.stat().st_size for file in reader.files]
    blocks, total = blocks_of(reader.files, reader.shard), sum(sizes)
    missing = [block for block in blocks if not is_surveyed(folder, block)]
    left = sum(sizes[number] for block in missing for number in block)
    takes_a_while = bool(missing) and total > SMALL
    said = progress if takes_a_while else lambda share, stage: None
    advance = _advancing(said, "choosing the validation text", total, total - left)
    run(survey_block, (folder, reader), missing, advance)
    return merge(folder, blocks, reader, total, share)


def _tokenize(job: Job, progress: Progress, run: Run) -> Iterator[ShardReport]:
    """Make all shards that are not there, and yield the reports of all."""
    parts = job.survey.parts
    missing = [number for number in range(len(parts)) if ShardReport.read(job.folder, number) is None]
    runs = [[number for _, number in group] for _, group in groupby(enumerate(missing), lambda pair: pair[1] - pair[0])]
    items = [some for run_ in runs for some in run.ranges(range(run_[0], run_[-1] + 1))]
    total, left = (sum(parts[number].characters for number in numbers) for numbers in (range(len(parts)), missing))
    run(make_shards, job, items, _advancing(progress, "tokenizing", total, total - left))
    for number in range(len(parts)):
        if (report := ShardReport.read(job.folder, number)) is None:
            raise RunError(f"{job.folder}: shard {number} is gone; prepare the text again")
        yield report


def _fill(manifest: Manifest, survey: Survey, sources: Sources, reports: Iterator[ShardReport]) -> None:
    """All of the manifest but `complete`."""
    files = {f"file ({reason})": count for reason, count in (sources.unread | sources.skipped).items()}
    skipped, scripts = survey.skipped + Counter(files), Counter[str]()
    manifest.documents, manifest.duplicates, manifest.broken = survey.documents, survey.duplicates, survey.broken
    for report in reports:
        manifest.train.append(report.train)
        manifest.val.append(report.val)
        manifest.broken += report.broken
        skipped.update(report.skipped)
        scripts.update(report.scripts)
    manifest.skipped, manifest.scripts = dict(skipped), dict(scripts)


def _digest_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _kept_tokenizer(folder: Path, reader: Reader, contents: str, size: int, progress: Progress) -> Tokenizer:
    """The tokenizer from an interrupted call with the same settings, or a newly trained one."""
    config, note, file = reader.config, folder / "tokenizer-settings.json", folder / "tokenizer.json"
    settings = {"contents": contents, **_wanted(config)}

    def with_digest() -> dict[str, Any]:
        return {**settings, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    if note.exists() and file.exists() and json.loads(note.read_text()) == with_digest():
        return tokenizer_from_folder(folder)
    advance = _advancing(progress, f"training a tokenizer ({config.tokenizer})", size)
    texts = sample(_plain(reader, advance), size)
    save_tokenizer(train_tokenizer(texts, config.tokenizer, config.vocabulary or _VOCABULARY), folder)
    with atomic_write(note) as writing:
        json.dump(with_digest(), writing)
    return_freed_memory()
    return tokenizer_from_folder(folder)


def _plain(reader: Reader, advance: Advance = lambda count: None) -> Iterator[Document]:
    """The documents, to train a tokenizer on. Raises UsageError for a conversation, which needs a model's own."""
    for document in reader.texts(advance):
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
        if manifest.settings == settings and (not manifest.complete or _files_exist(folder, manifest)):
            return manifest
    except UsageError:
        pass
    shutil.rmtree(folder / WORK, ignore_errors=True)
    _remove(folder, _OURS)
    save_tokenizer(tokenizer, folder)
    manifest = Manifest(settings)
    manifest.write(folder)
    return manifest


def _files_exist(folder: Path, manifest: Manifest) -> bool:
    width = token_dtype(manifest.settings.vocabulary).itemsize
    shards = (*manifest.train, *manifest.val)
    sizes = {folder / f"{shard.name}.bin": shard.tokens * width for shard in shards}
    complete = all(file.exists() and file.stat().st_size == size for file, size in sizes.items())
    return complete and all((folder / f"{shard.name}.pieces.npy").exists() for shard in shards)


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    """Remove files of a `prepare`, and nothing else: the folder may hold the text itself."""
    for old in folder.iterdir():
        if names.fullmatch(old.name):
            old.unlink()


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
