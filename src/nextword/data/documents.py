"""Files and folders → documents: text, Markdown, JSON lines, Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..base import RunError, UsageError

TEXT, LINES, TABLES = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
COLUMNS = ("text", "content")
PIECE = 1 << 20  # bytes of a text file that are held at a time; a longer one is cut at the end of a line
_SNIFFED = 4096


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    text: str
    source: str


@dataclass(frozen=True)
class Sources:
    """Files to read, in order, and the files passed over by the reason why."""

    files: tuple[Path, ...]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the files as they are stored."""
        return sum(file.stat().st_size for file in self.files)


@dataclass
class Faults:
    """Broken rows passed over, where that was asked for."""

    skip: bool = False
    count: int = 0

    def meet(self, message: str) -> None:
        """Count it, or raise UsageError with it."""
        if not self.skip:
            raise UsageError(f"{message}. Mend it, or pass over such rows with --skip-bad")
        self.count += 1


def find_sources(paths: Sequence[Path | str]) -> Sources:
    """The files under `paths` that hold text, each folder in sorted order. Raises UsageError where there is none."""
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    for given in map(str, paths):
        path = fetch_data_set(given.removeprefix("hf:")) if given.startswith("hf:") else Path(given).expanduser()
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
            _sort_out(sorted(inside), files, skipped)
        elif path.is_file():
            if _kind(path) is None or _is_binary(path):
                raise UsageError(f"{path} is no text. Takes {', '.join((*TEXT, *LINES, *TABLES))}, or a folder of them")
            files.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not files:
        looked = ", ".join(map(str, paths)) or "nothing"
        raise UsageError(
            f"no text in {looked}: looked for {', '.join((*TEXT, *LINES, *TABLES))} (.gz of the first four)"
        )
    once: dict[Path, Path] = {}  # a file may be named, and its folder as well
    for file in files:
        once.setdefault(file.resolve(), file)
    return Sources(tuple(once.values()), dict(skipped))


def _is_hidden(path: Path) -> bool:
    """Such as .git and what is below it."""
    return any(part.startswith(".") for part in path.parts)


def _sort_out(found: list[Path], files: list[Path], skipped: Counter[str]) -> None:
    for path in found:
        if _kind(path) is None:
            skipped[f"not text by name ({path.suffix or 'no ending'})"] += 1
        elif _is_binary(path):
            skipped["binary"] += 1
        elif path.stat().st_size == 0:
            skipped["empty"] += 1
        else:
            files.append(path)


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        if suffix in TABLES:
            return None
    return next((kinds[0] for kinds in (TEXT, LINES, TABLES) if suffix in kinds), None)


def _is_binary(path: Path) -> bool:
    if _kind(path) == TABLES[0] or path.suffix.lower() == ".gz":
        return False
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFFED)


def read_documents(path: Path, faults: Faults | None = None, column: str | None = None) -> Iterator[Document]:
    """The documents of one file: a text file is one, or several where it is longer than `PIECE`; else one a row.

    Raises UsageError with file and line for rows that are broken, unless `faults` says to pass over them.
    """
    faults = faults or Faults()
    kind = _kind(path)
    if kind == TABLES[0]:
        yield from _read_parquet(path, faults, column)
        return
    try:
        with _opened(path) as file:
            yield from _read_lines(path, file, faults, column) if kind == LINES[0] else _read_text(path, file, faults)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.meet(f"{path}: not a whole gzip file ({error})")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None


def _opened(path: Path) -> IO[bytes]:
    zipped = path.suffix.lower() == ".gz"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _read_text(path: Path, file: IO[bytes], faults: Faults) -> Iterator[Document]:
    first, encoding = 1, "utf-8-sig"
    while data := _part(file):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            line = first + error.object[: error.start].count(b"\n")
            faults.meet(f"{path}, line {line}: not valid UTF-8 (byte 0x{error.object[error.start]:02X})")
            text = data.decode(encoding, errors="replace")
        if text.strip():
            yield Document(text, f"{path}:{first}")
        first, encoding = first + data.count(b"\n"), "utf-8"


def _part(file: IO[bytes]) -> bytes:
    """The next `PIECE` bytes and what is left of their last line, or of their last character if it is too long."""
    data = file.read(PIECE)
    if len(data) == PIECE and not data.endswith(b"\n"):
        data += file.readline(PIECE)
        while not data.endswith(b"\n") and _is_cut(data) and (more := file.read(1)):
            data += more
    return data


def _is_cut(data: bytes) -> bool:
    """Whether UTF-8 ends inside a character: fewer bytes follow its first byte than that announces."""
    for back in range(1, 4):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first of its character, which has as many bytes as leading ones
            return byte >= 0xC0 and back < 2 + (byte >= 0xE0) + (byte >= 0xF0)
    return False


def _read_lines(path: Path, file: IO[bytes], faults: Faults, column: str | None) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row if isinstance(row, str) else _column(row, column)
            text.encode()
        except UnicodeEncodeError:
            faults.meet(f"{path}, line {number}: half a surrogate pair (\\ud800 to \\udfff), which is no text")
            continue
        except (ValueError, RecursionError, KeyError) as error:
            reason = str(error).strip("'\"") if isinstance(error, KeyError) else f"not JSON ({error})"
            faults.meet(f"{path}, line {number}: {reason}")
            continue
        if text.strip():
            yield Document(text, f"{path}:{number}")


def _column(row: object, column: str | None) -> str:
    if not isinstance(row, dict):
        raise KeyError(f"a row is a {type(row).__name__}, not an object")
    names = (column,) if column else COLUMNS
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    known = ", ".join(map(str, list(row)[:12]))
    raise KeyError(f"no text in {' or '.join(map(repr, names))}; the row has: {known}. Name it with --column")


def _read_parquet(path: Path, faults: Faults, column: str | None) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RunError(f"{path} needs pyarrow. Install it with: pip install 'nextword[parquet]'") from None
    try:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = [name for name in ((column,) if column else COLUMNS) if name in names]
        if not wanted:
            raise UsageError(f"{path}: no column {column or ' or '.join(COLUMNS)}; it has {', '.join(names)}."
                             " Name it with --column")  # fmt: skip
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
        faults.meet(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})")


def _value(cell: Any) -> object:
    """A cell's value, or None where it claims to be text and is not UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def fetch_data_set(name: str) -> Path:
    """The text files of a data set owner/name[@revision] of the Hugging Face hub, in huggingface_hub's cache."""
    from ..weights.hub import download

    repository, _, revision = name.partition("@")
    wanted = [f"*{suffix}{gz}" for suffix in (*TEXT, *LINES) for gz in ("", ".gz")] + ["*.parquet"]
    return download(
        repository, revision or None, wanted, unwanted=["README.md"], kind="dataset", instead="a folder of text"
    )
