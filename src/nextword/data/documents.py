"""Files and folders → documents: text, Markdown, JSON lines, Parquet."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..base import RunError, UsageError

TEXT, LINES, TABLES = (".txt", ".md"), (".jsonl", ".ndjson"), (".parquet",)
COLUMNS = ("text", "content")
PIECE = 4 << 20  # bytes of a text file that are held at a time; a longer one is cut at the end of a line
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
    for given in paths:
        if str(given).startswith("hf:"):
            given = fetch_data_set(str(given).removeprefix("hf:"))
        path = Path(given).expanduser()
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.parts[-2:]))
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
    return Sources(tuple(files), dict(skipped))


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
    with _opened(path) as file:
        yield from _read_lines(path, file, faults, column) if kind == LINES[0] else _read_text(path, file, faults)


def _opened(path: Path) -> IO[bytes]:
    zipped = path.suffix.lower() == ".gz"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


def _read_text(path: Path, file: IO[bytes], faults: Faults) -> Iterator[Document]:
    held: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(_lines(file), 1):
        held.append(line)
        size += len(line)
        if size >= PIECE:
            yield from _decoded(path, held, first, faults)
            held, size, first = [], 0, number + 1
    yield from _decoded(path, held, first, faults)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, a line without an end in parts of a megabyte: a file need have none."""
    while line := file.readline(1 << 20):
        while len(line) == 1 << 20 and line[-1] & 0xC0 == 0x80 and (more := file.read(1)):  # not inside a character
            line += more
            if more[0] & 0xC0 != 0x80:
                break
        yield line


def _decoded(path: Path, lines: list[bytes], first: int, faults: Faults) -> Iterator[Document]:
    try:
        text = b"".join(lines).decode("utf-8-sig" if first == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first + error.object[: error.start].count(b"\n")
        faults.meet(f"{path}, line {line}: not valid UTF-8 (byte 0x{error.object[error.start]:02X})")
        text = b"".join(lines).decode("utf-8", errors="replace")
    if text.strip():
        yield Document(text, f"{path}:{first}")


def _read_lines(path: Path, file: IO[bytes], faults: Faults, column: str | None) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row if isinstance(row, str) else _column(row, column)
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
            for value in batch.column(0).to_pylist():
                number += 1
                if not isinstance(value, str):
                    faults.meet(f"{path}, row {number}: the column {wanted[0]!r} holds no text")
                elif value.strip():
                    yield Document(value, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def fetch_data_set(repository: str) -> Path:
    """A data set of the Hugging Face hub, its text files alone, in huggingface_hub's cache."""
    try:
        import huggingface_hub
    except ImportError:
        raise RunError(f"hf:{repository} needs huggingface_hub. Install it with: pip install 'nextword[hub]'") from None
    wanted = [f"*{suffix}{gz}" for suffix in (*TEXT, *LINES) for gz in ("", ".gz")] + ["*.parquet"]
    try:
        return Path(huggingface_hub.snapshot_download(repository, repo_type="dataset", allow_patterns=wanted))
    except Exception as error:  # network, cache and HTTP errors have no common class across versions
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"hf:{repository} could not be fetched ({type(error).__name__}: {reason})") from error
