"""Finds the files to read in folders, and counts what is skipped and why."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base import UsageError, open_regular
from .compressed import ARCHIVE, COMPRESSIONS

TEXT, LINES, TABLES = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
ACCEPTED = ", ".join((*TEXT, *LINES, *TABLES))
_REASONS = ("binary", "empty", "hidden", "in training runs")
_SNIFFED = 4096
_KINDS_LISTED = 8  # kinds of unread files that are listed by name


@dataclass(frozen=True)
class Document:
    """A text and its source; or a part of one that is too long to hold in memory."""

    text: str  # of a conversation: the JSON of its messages
    source: str
    first: bool = True  # whether the document begins here
    last: bool = True  # and ends here
    conversation: bool = False


@dataclass(frozen=True)
class Sources:
    """Files to read, in order, and how many were skipped, by file extension or by reason."""

    files: tuple[Path, ...]
    unread: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of the files as stored."""
        return sum(file.stat().st_size for file in self.files)

    def skipped_line(self) -> str:
        """A one-line summary of the skipped files; empty if there are none."""
        return _skipped_line(self.unread, self.skipped)


@dataclass
class Faults:
    """Counts broken rows and files, if they are to be skipped, and whatever else is left out."""

    skip: bool = False
    count: int = 0  # broken ones
    reasons: Counter[str] = field(default_factory=Counter)  # all that was left out, by reason

    def meet(
        self, message: str, fix: str = "Fix it, or skip such rows: --set data.skip_invalid=true", reason: str = "broken"
    ) -> None:
        """Count a broken row or file, or raise UsageError."""
        if not self.skip:
            raise UsageError(f"{message}. {fix}")
        self.count += 1
        self.reasons[reason] += 1

    def count_skipped(self, reason: str) -> None:
        """Count what is left out and not broken, such as an empty row."""
        self.reasons[reason] += 1


def find_sources(paths: Sequence[Path | str], encoding: str = "utf-8") -> Sources:
    """The text files under `paths`, each folder in sorted order, without the folders of runs in it.

    Raises UsageError if there is none.
    """
    files: list[Path] = []
    unread: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for given in map(str, paths):
        path = _fetched(given) if given.startswith("hf:") else Path(given).expanduser()
        if path.is_dir():
            for file, reason in _inside(path, encoding):
                if reason is None:
                    files.append(file)
                else:
                    (skipped if reason in _REASONS else unread)[reason] += 1
        elif path.is_file():
            if (reason := _unreadable(path, encoding)) is not None:
                what = f"the file is {reason}" if reason in _REASONS else f"no reader for {reason}"
                raise UsageError(f"{path}: {what}. Accepted: {ACCEPTED}, or a folder of them")
            files.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not files:
        looked = ", ".join(map(str, paths)) or "nothing"
        passed = _skipped_line(unread, skipped)
        raise UsageError(
            f"no text in {looked}: looked for {ACCEPTED} (.gz, .zst and .zip of all but .parquet)"
            f"{passed and '; ' + passed}"
        )
    return Sources(tuple(_once(files)), dict(unread), dict(skipped))


def _fetched(given: str) -> Path:
    from .hub_datasets import fetch

    return fetch(given.removeprefix("hf:"))


def _once(files: Sequence[Path]) -> Iterator[Path]:
    """Each file once: it may be named together with its folder."""
    seen = set[tuple[int, int]]()
    for file in files:
        status = file.stat()
        if (identity := (status.st_dev, status.st_ino)) not in seen:
            seen.add(identity)
            yield file


def _inside(folder: Path, encoding: str, always: str | None = None) -> Iterator[tuple[Path, str | None]]:
    """The files below `folder` in sorted order, and why each is skipped, if it is: `always`, where that is given."""
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    if always is None and any(entry.name == "run.json" for entry in entries):
        always = "in training runs"
    for entry in entries:
        path = folder / entry.name
        reason = "hidden" if entry.name.startswith(".") else always  # such as .git and what is below it
        if entry.is_dir(follow_symlinks=False):
            yield from _inside(path, encoding, reason)
        elif entry.is_file():
            yield path, reason or _unreadable(path, encoding)


def _unreadable(path: Path, encoding: str) -> str | None:
    """Why a file is skipped: an unsupported extension, or one of `_REASONS`; None for a file to read."""
    if kind_of(path.name) is None:
        return path.suffix or "files without an extension"
    if path.stat().st_size == 0:
        return "empty"
    return "binary" if _is_binary(path, encoding) else None


def _skipped_line(unread: dict[str, int], skipped: dict[str, int]) -> str:
    said = [f"{reason} ({count:,})" for reason, count in sorted(skipped.items())]
    if unread:
        kinds = [f"{kind} ({count:,})" for kind, count in Counter(unread).most_common(_KINDS_LISTED)]
        if more := len(unread) - len(kinds):
            kinds.append(f"{more:,} other kinds")
        said.insert(0, f"no reader for {', '.join(kinds)}")
    files = sum(unread.values()) + sum(skipped.values())
    return f"skipped {files:,} file{'' if files == 1 else 's'}: {'; '.join(said)}" if files else ""


def check_encoding(name: str) -> str:
    """The codec's canonical name. Raises UsageError for an unknown encoding."""
    try:
        if (codec := codecs.lookup(name))._is_text_encoding:
            return codec.name
    except LookupError:
        pass
    raise UsageError(f"encoding {name!r} is not known. Use, for example, utf-8, latin-1, cp1252 or utf-16")


def kind_of(name: str) -> str | None:
    """How a file is read: .txt, .jsonl, .parquet or .zip, compressed or not; None if it is not."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in COMPRESSIONS:
        suffix = os.path.splitext(stem)[1]
        return None if suffix in (*TABLES, ARCHIVE) else _kind(suffix)
    return _kind(suffix)


def _kind(suffix: str) -> str | None:
    return next((kinds[0] for kinds in (TEXT, LINES, TABLES, (ARCHIVE,)) if suffix in kinds), None)


def _is_binary(path: Path, encoding: str) -> bool:
    if kind_of(path.name) in (TABLES[0], ARCHIVE) or path.suffix.lower() in COMPRESSIONS or is_wide(encoding):
        return False
    with open_regular(path) as file:
        return b"\0" in file.read(_SNIFFED)


def is_wide(encoding: str) -> bool:
    """Whether text of this encoding has bytes of 0, which are otherwise a sign of a binary file."""
    return encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
