"""Files → documents: text and Markdown, JSON lines, Parquet, compressed or not."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from ..base import RunError, UsageError, printable, require
from .compressed import ARCHIVE, Allowance, DecompressionError, Watch, members, opened, opened_member
from .documents import LINES, TABLES, TEXT, Document, Faults, kind_of

COLUMNS = ("text", "content")
MESSAGES = "messages"  # the column of a conversation
PIECE = 1 << 20  # bytes of a text file decoded at a time; a longer file is read in parts that end with a line
_LONGEST_ROW = 32 << 20  # bytes of a row of JSON lines, which is held in memory
_ROWS = 64  # of a Parquet file at a time


@dataclass(frozen=True)
class _Input:
    """A file, or a member of a .zip: its name, its kind and how to open it."""

    name: str
    kind: str | None
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class _Reading:
    """How to read: where faults go, the column of rows, the encoding's canonical name, who watches the position."""

    faults: Faults
    column: str
    encoding: str
    watch: Watch


def read_documents(
    path: Path, faults: Faults | None = None, column: str = "", encoding: str = "utf-8",
    watch: Watch = lambda tell: None,
) -> Iterator[Document]:  # fmt: skip
    """The documents of one file: one per row, or one per text file, in parts if it is longer than `PIECE`.

    A row with `messages` is a conversation; its text is their JSON. Raises UsageError with file and line for rows that
    are broken and for text that is not of `encoding`. Where `faults` says to skip, such a row and such a text file are
    left out, the file as a whole. `watch` is given a function that says how many bytes of the file have been read.
    """
    how = _Reading(faults or Faults(), column, codecs.lookup(encoding).name, watch)
    kind = kind_of(path.name)
    if kind == TABLES[0]:
        yield from _read_parquet(path, how)
    elif kind == ARCHIVE:
        yield from _read_zip(path, how)
    else:
        yield from _read_input(_Input(str(path), kind, partial(opened, path, watch)), how)


def _read_zip(path: Path, how: _Reading) -> Iterator[Document]:
    allowance = Allowance(path)
    try:
        with members(path, how.watch) as found:
            for archive, member in found:
                kind = kind_of(member.filename)
                if kind not in (TEXT[0], LINES[0]) or not member.filename.lower().endswith((*TEXT, *LINES)):
                    how.faults.count_skipped("no reader for a file in a .zip")
                    continue
                name = f"{path}:{printable(member.filename)}"
                yield from _read_input(_Input(name, kind, partial(opened_member, archive, member, allowance)), how)
    except DecompressionError as error:
        how.faults.meet(f"{path}: {error}", _FIX_FILE, "damaged file")


def _read_input(source: _Input, how: _Reading) -> Iterator[Document]:
    if source.kind == LINES[0]:
        yield from _guarded(source, how, lambda file: _read_lines(source.name, file, how))
    elif not how.faults.skip or _is_sound(source, how):
        yield from _guarded(source, how, lambda file: _read_text(source.name, file, how))


_FIX_FILE = "Replace it, or skip such files: --set data.skip_invalid=true"


def _guarded(source: _Input, how: _Reading, read: Callable[[IO[bytes]], Iterator[Any]]) -> Iterator[Any]:
    """What `read` yields for the open file; errors of reading name the file."""
    try:
        with source.open() as file:
            yield from read(file)
    except _UndecodableError as error:
        how.faults.meet(f"{source.name}, {error}", _fix_encoding("files"), "of another encoding")
    except DecompressionError as error:
        how.faults.meet(f"{source.name}: {error}", _FIX_FILE, "damaged file")
    except OSError as error:
        raise RunError(f"{source.name}: cannot be read ({(error.strerror or str(error)).lower()})") from None


def _fix_encoding(what: str) -> str:
    return f"Name its encoding, such as --set data.encoding=latin-1, or skip such {what}: --set data.skip_invalid=true"


class _UndecodableError(Exception):
    """Bytes that are invalid in the encoding, with their position."""


def _is_sound(source: _Input, how: _Reading) -> bool:
    """Whether the file can be read to its end; counts a fault. Checked first, so that no part of a bad file is used."""
    before = how.faults.count
    for _ in _guarded(source, how, lambda file: _decoded(file, how.encoding)):
        pass
    return how.faults.count == before


# ---- text


def _read_text(name: str, file: IO[bytes], how: _Reading) -> Iterator[Document]:
    part, line = "", 1
    held: Document | None = None  # held until it is known whether it is the last
    for text in _decoded(file, how.encoding):
        part += text
        end = part.rfind("\n") + 1 or len(part)
        if held is not None:
            yield held
        held = Document(part[:end], f"{name}:{line}", first=held is None, last=False)
        line, part = line + held.text.count("\n"), part[end:]
    if held is not None and part:
        yield held
        held = Document(part, f"{name}:{line}", first=False)
    if held is not None and (not held.first or held.text.strip()):
        yield Document(held.text, held.source, held.first)
    else:
        how.faults.count_skipped("without text")


def _decoded(file: IO[bytes], encoding: str) -> Iterator[str]:
    """The text of a file, `PIECE` bytes at a time, without a byte-order mark. Raises _UndecodableError."""
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
    lines = 1
    while data := file.read(PIECE):
        yield (text := _decode(decoder, data, lines, encoding))
        lines += text.count("\n")
    if text := _decode(decoder, b"", lines, encoding):
        yield text


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, line: int, name: str) -> str:
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].decode(name, "ignore").count("\n")
        byte = error.object[error.start]
        raise _UndecodableError(f"line {line}: not valid {name.upper()} (byte 0x{byte:02X})") from None


# ---- rows


def _read_lines(name: str, file: IO[bytes], how: _Reading) -> Iterator[Document]:
    encoding = "utf-8-sig" if how.encoding == "utf-8" else how.encoding
    number = 0
    while line := file.readline(_LONGEST_ROW + 1):
        number += 1
        if len(line) > _LONGEST_ROW:
            while line and not line.endswith(b"\n"):
                line = file.readline(_LONGEST_ROW)
            how.faults.meet(f"{name}, line {number}: longer than {_LONGEST_ROW >> 20} MB", reason="row too long")
        elif line.isspace():
            continue
        else:
            try:
                yield from _document(json.loads(line.decode(encoding)), f"{name}:{number}", how)
            except UnicodeDecodeError as error:
                byte = f"byte 0x{error.object[error.start]:02X}"
                message = f"{name}, line {number}: not valid {how.encoding.upper()} ({byte})"
                how.faults.meet(message, _fix_encoding("rows"), "of another encoding")
            except (ValueError, RecursionError) as error:
                reason = error if isinstance(error, _RowError) else f"not JSON ({error})"
                how.faults.meet(f"{name}, line {number}: {reason}", reason="broken row")


class _RowError(ValueError):
    """Says what is wrong with a row."""


def _document(row: object, source: str, how: _Reading) -> Iterator[Document]:
    """The document of a row, if it has text. Raises _RowError."""
    value = row if isinstance(row, str) else _column(row, how.column)
    if isinstance(value, str):
        text = value
    else:
        assert isinstance(row, dict)
        text = _conversation(value, row.get("tools"))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _RowError("half a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    if not text or text.isspace():
        how.faults.count_skipped("without text")
    else:
        yield Document(text, source, conversation=not isinstance(value, str))


def _column(row: object, column: str) -> Any:
    if not isinstance(row, dict):
        raise _RowError(f"a row is a {type(row).__name__}, not an object")
    names = (column,) if column else COLUMNS
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
    if isinstance(row.get(MESSAGES), list) and column in ("", MESSAGES):
        return row[MESSAGES]
    known = ", ".join(map(str, list(row)[:12]))
    wanted = " or ".join(map(repr, names))
    raise _RowError(f"no text in {wanted}; the row has: {known}. Name it: --set data.column=NAME")


def _conversation(messages: list[Any], tools: Any) -> str:
    """The JSON of a conversation, checked as far as no chat template is needed for it."""
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _RowError(f"{MESSAGES!r} holds objects with role and content")
    if not any(message["role"] == "assistant" for message in messages):
        raise _RowError("a conversation without a message of the assistant, so there is nothing to learn")
    return json.dumps({MESSAGES: messages, **({"tools": tools} if tools else {})}, ensure_ascii=False)


def _read_parquet(path: Path, how: _Reading) -> Iterator[Document]:
    require("pyarrow", str(path))
    import pyarrow
    from pyarrow import parquet

    try:
        # Pages are read as they are needed: a row group may be larger than the memory.
        table = parquet.ParquetFile(path, buffer_size=PIECE, pre_buffer=False)
        names = table.schema_arrow.names
        candidates = (how.column,) if how.column else (*COLUMNS, MESSAGES)
        wanted = [name for name in candidates if name in names][:1]
        if not wanted:
            raise UsageError(f"{path}: no column {' or '.join(candidates)}; it has {', '.join(names)}."
                             " Name it: --set data.column=NAME")  # fmt: skip
        if wanted == [MESSAGES] and "tools" in names:
            wanted.append("tools")
        number, rows, size = 0, max(1, table.metadata.num_rows), path.stat().st_size
        how.watch(lambda: size * number // rows)
        for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
            for index in range(batch.num_rows):
                number += 1
                try:
                    row = {name: batch.column(name)[index].as_py() for name in wanted}
                    yield from _document(row, f"{path}:{number}", how)
                except ValueError as error:
                    reason = error if isinstance(error, _RowError) and wanted[0] == MESSAGES else (
                        f"the column {wanted[0]!r} holds no text")  # fmt: skip
                    how.faults.meet(f"{path}, row {number}: {reason}", reason="broken row")
    except (pyarrow.ArrowException, OSError) as error:
        how.faults.meet(f"{path}: an incomplete Parquet file ({str(error).splitlines()[0]})", _FIX_FILE, "damaged file")
