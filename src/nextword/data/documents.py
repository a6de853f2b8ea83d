"""Files and folders → documents: text, Markdown, JSON lines, Parquet."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..base import RunError, UsageError, open_regular, require

TEXT, LINES, TABLES = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
COLUMNS = ("text", "content")
PIECE = 1 << 20  # bytes of a text file decoded at a time; a longer file is read in parts that end with a line
_SNIFFED = 4096
_KINDS_LISTED = 8  # kinds of unread files that are listed by name


@dataclass(frozen=True)
class Document:
    """A text and its source; or a part of one that is too long to hold in memory."""

    text: str
    source: str
    first: bool = True  # whether the document begins here
    last: bool = True  # and ends here


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
    """Counts broken rows and files, if they are to be skipped."""

    skip: bool = False
    count: int = 0

    def meet(self, message: str, fix: str = "Fix it, or skip such rows: --set data.skip_invalid=true") -> None:
        """Count a broken row or file, or raise UsageError."""
        if not self.skip:
            raise UsageError(f"{message}. {fix}")
        self.count += 1


def find_sources(paths: Sequence[Path | str], encoding: str = "utf-8") -> Sources:
    """The text files under `paths`, each folder in sorted order, without the folders of runs in it.

    Raises UsageError if there is none.
    """
    files: list[Path] = []
    unread: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for given in map(str, paths):
        path = fetch_data_set(given.removeprefix("hf:")) if given.startswith("hf:") else Path(given).expanduser()
        if path.is_dir():
            for file, reason in _inside(path, encoding):
                if reason is None:
                    files.append(file)
                else:
                    (skipped if reason in _REASONS else unread)[reason] += 1
        elif path.is_file():
            if (reason := _unreadable(path, encoding)) is not None:
                what = f"the file is {reason}" if reason in _REASONS else f"no reader for {reason}"
                raise UsageError(f"{path}: {what}. Accepted: {', '.join(_READ)}, or a folder of them")
            files.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not files:
        looked = ", ".join(map(str, paths)) or "nothing"
        passed = _skipped_line(unread, skipped)
        raise UsageError(
            f"no text in {looked}: looked for {', '.join(_READ)} (.gz of all but .parquet){passed and '; ' + passed}"
        )
    once: dict[Path, Path] = {}  # a file may be named together with its folder
    for file in files:
        once.setdefault(file.resolve(), file)
    return Sources(tuple(once.values()), dict(unread), dict(skipped))


_READ = (*TEXT, *LINES, *TABLES)
_REASONS = ("binary", "empty", "hidden", "in training runs")


def _inside(folder: Path, encoding: str) -> Iterator[tuple[Path, str | None]]:
    """The files below `folder` in sorted order, and why each is skipped, if it is."""
    runs = {file.parent for file in folder.rglob("run.json")}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in path.relative_to(folder).parts):  # such as .git and what is below it
            yield path, "hidden"
        elif not runs.isdisjoint(path.parents):
            yield path, "in training runs"
        else:
            yield path, _unreadable(path, encoding)


def _unreadable(path: Path, encoding: str) -> str | None:
    """Why a file is skipped: an unsupported extension, or one of `_REASONS`; None for a file to read."""
    if _kind(path) is None:
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


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        if suffix in TABLES:
            return None
    return next((kinds[0] for kinds in (TEXT, LINES, TABLES) if suffix in kinds), None)


def _is_binary(path: Path, encoding: str) -> bool:
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
    if _kind(path) == TABLES[0] or path.suffix.lower() == ".gz" or wide:
        return False
    with open_regular(path) as file:
        return b"\0" in file.read(_SNIFFED)


def read_documents(
    path: Path, faults: Faults | None = None, column: str = "", encoding: str = "utf-8"
) -> Iterator[Document]:
    """The documents of one file: one per row, or one per text file, in parts if it is longer than `PIECE`.

    Raises UsageError with file and line for rows that are broken and for text that is not of `encoding`. Where
    `faults` says to skip, such a row and such a text file are left out, the file as a whole.
    """
    faults = faults or Faults()
    kind = _kind(path)
    if kind == TABLES[0]:
        yield from _read_parquet(path, faults, column)
    elif kind == LINES[0]:
        yield from _guarded(path, faults, lambda file: _read_lines(path, file, faults, column, encoding))
    elif not faults.skip or _is_sound(path, faults, encoding):
        yield from _guarded(path, faults, lambda file: _read_text(path, file, encoding))


def _guarded(path: Path, faults: Faults, read: Callable[[IO[bytes]], Iterator[Any]]) -> Iterator[Any]:
    """What `read` yields for the open file; errors of reading name the file."""
    try:
        with _opened(path) as file:
            yield from read(file)
    except _UndecodableError as error:
        faults.meet(f"{path}, {error}", _fix_encoding("files"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.meet(f"{path}: an incomplete gzip file ({error})")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open_regular(path) as file:
        if path.suffix.lower() == ".gz":
            with gzip.open(file, "rb") as inner:
                yield inner  # type: ignore[misc]
        else:
            yield file


def _fix_encoding(what: str) -> str:
    return f"Name its encoding, such as --set data.encoding=latin-1, or skip such {what}: --set data.skip_invalid=true"


class _UndecodableError(Exception):
    """Bytes that are invalid in the encoding, with their position."""


def _is_sound(path: Path, faults: Faults, encoding: str) -> bool:
    """Whether the file can be read to its end; counts a fault. Checked first, so that no part of a bad file is used."""
    before = faults.count
    for _ in _guarded(path, faults, lambda file: _decoded(file, encoding)):
        pass
    return faults.count == before


def _read_text(path: Path, file: IO[bytes], encoding: str) -> Iterator[Document]:
    part, line = "", 1
    held: Document | None = None  # held until it is known whether it is the last
    for text in _decoded(file, encoding):
        part += text
        end = part.rfind("\n") + 1 or len(part)
        if held is not None:
            yield held
        held = Document(part[:end], f"{path}:{line}", first=held is None, last=False)
        line, part = line + held.text.count("\n"), part[end:]
    if held is not None and part:
        yield held
        held = Document(part, f"{path}:{line}", first=False)
    if held is not None and (not held.first or held.text.strip()):
        yield Document(held.text, held.source, held.first)


def _decoded(file: IO[bytes], encoding: str) -> Iterator[str]:
    """The text of a file, `PIECE` bytes at a time, without a byte-order mark. Raises _UndecodableError."""
    name = codecs.lookup(encoding).name
    decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)()
    lines = 1
    while data := file.read(PIECE):
        yield (text := _decode(decoder, data, lines, name))
        lines += text.count("\n")
    if text := _decode(decoder, b"", lines, name):
        yield text


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, line: int, name: str) -> str:
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].decode(name, "ignore").count("\n")
        byte = error.object[error.start]
        raise _UndecodableError(f"line {line}: not valid {name.upper()} (byte 0x{byte:02X})") from None


def _read_lines(path: Path, file: IO[bytes], faults: Faults, column: str, encoding: str) -> Iterator[Document]:
    name = codecs.lookup(encoding).name
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if name == "utf-8" else name))
            text = row if isinstance(row, str) else _column(row, column)
            text.encode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            faults.meet(
                f"{path}, line {number}: not valid {name.upper()} (byte 0x{byte:02X})",
                _fix_encoding("rows"),
            )
            continue
        except UnicodeEncodeError:
            faults.meet(f"{path}, line {number}: half a surrogate pair (\\ud800 to \\udfff), which is not text")
            continue
        except (ValueError, RecursionError, KeyError) as error:
            reason = str(error).strip("'\"") if isinstance(error, KeyError) else f"not JSON ({error})"
            faults.meet(f"{path}, line {number}: {reason}")
            continue
        if text.strip():
            yield Document(text, f"{path}:{number}")


def _column(row: object, column: str) -> str:
    if not isinstance(row, dict):
        raise KeyError(f"a row is a {type(row).__name__}, not an object")
    names = (column,) if column else COLUMNS
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    known = ", ".join(map(str, list(row)[:12]))
    raise KeyError(f"no text in {' or '.join(map(repr, names))}; the row has: {known}. Name it: --set data.column=NAME")


def _read_parquet(path: Path, faults: Faults, column: str) -> Iterator[Document]:
    require("pyarrow", str(path))
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = [name for name in ((column,) if column else COLUMNS) if name in names]
        if not wanted:
            raise UsageError(f"{path}: no column {column or ' or '.join(COLUMNS)}; it has {', '.join(names)}."
                             " Name it: --set data.column=NAME")  # fmt: skip
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=wanted[:1]):
            for cell in batch.column(0):
                number += 1
                value = _value(cell)
                if not isinstance(value, str):
                    faults.meet(f"{path}, row {number}: the column {wanted[0]!r} holds no text")
                elif value.strip():
                    yield Document(value, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        faults.meet(f"{path}: an incomplete Parquet file ({str(error).splitlines()[0]})")


def _value(cell: Any) -> object:
    """A cell's value, or None for text that is not UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def fetch_data_set(name: str) -> Path:
    """Download the text files of a hub data set owner/name[@revision] to huggingface_hub's cache."""
    from ..weights.hub import download

    repository, _, revision = name.partition("@")
    wanted = [f"*{suffix}{gz}" for suffix in (*TEXT, *LINES) for gz in ("", ".gz")] + ["*.parquet"]
    return download(repository, revision or None, wanted, ["README.md"], kind="dataset", instead="a folder of text")
