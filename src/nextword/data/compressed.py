"""Compressed files as streams: .gz, .zst and the members of a .zip, never more than a multiple of the file's size."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from ..base import open_regular, require

COMPRESSIONS = (".gz", ".zst")
ARCHIVE = ".zip"
_MOST_RATIO = 1000  # decompressed bytes per byte of the file: text has 3 to 10, and nothing real reaches this
_ALWAYS = 1 << 20  # bytes that any file may decompress to
_READ = 1 << 10  # bytes of .zst at a time: those of an attack become 44 MB at most
_BUFFER = 1 << 16


Watch = Callable[[Callable[[], int]], None]  # is given what tells how many bytes of the stored file have been read


class DecompressionError(Exception):
    """A compressed file that is damaged, or suspiciously large when decompressed."""


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


class Allowance:
    """The bytes that a compressed file may still decompress to, over all its members."""

    def __init__(self, path: Path) -> None:
        self.left = _ALWAYS + _MOST_RATIO * path.stat().st_size

    def take(self, count: int) -> None:
        """Count decompressed bytes. Raises DecompressionError when there are too many."""
        self.left -= count
        if self.left < 0:
            raise DecompressionError(f"it decompresses to more than {_MOST_RATIO:,} times its size, as no text does")


@contextmanager
def opened(path: Path, watch: Watch) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if it is a .gz or a .zst. Reading raises DecompressionError."""
    with open_regular(path) as file:
        watch(file.tell)
        match path.suffix.lower():
            case ".gz":
                yield _checked(gzip.GzipFile(fileobj=file), Allowance(path))
            case ".zst":
                yield _checked(_ZstdFile(file, str(path)), Allowance(path))
            case _:
                yield file


@contextmanager
def members(path: Path, watch: Watch) -> Iterator[Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]]:
    """The files in a .zip, in its order. Nothing is unpacked to the disk."""
    with open_regular(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
            raise DecompressionError(f"not a readable .zip ({_reason(error)})") from None
        with archive:
            watch(file.tell)
            yield ((archive, member) for member in archive.infolist() if not member.is_dir())


@contextmanager
def opened_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, allowance: Allowance) -> Iterator[IO[bytes]]:
    """The bytes of one file of a .zip. Raises DecompressionError, also for an encrypted one."""
    try:
        stream = archive.open(member)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, OSError) as error:
        raise DecompressionError(_reason(error)) from None
    with stream:
        yield _checked(stream, allowance)


def _checked(stream: Any, allowance: Allowance) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Checked(stream, allowance), _BUFFER))


class _Checked(io.RawIOBase):
    """A decompressing stream that counts its bytes, with one kind of error."""

    def __init__(self, stream: IO[bytes], allowance: Allowance) -> None:
        self.stream, self.allowance = stream, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
            raise DecompressionError(f"incomplete or damaged ({_reason(error)})") from None
        self.allowance.take(len(data))
        buffer[: len(data)] = data
        return len(data)


class _ZstdFile(io.RawIOBase):
    """A .zst as a stream: frame after frame. Raises EOFError if the last one is incomplete."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        self.frame = _zstd_frame(name)
        self.inside = False  # a frame has begun
        self.held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held:
            data = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.inside = _zstd_frame(self.name), False
            data = data or self.file.read(_READ)
            if not data:
                if self.inside:
                    raise EOFError("it ends early")
                return 0
            self.inside = True
            self.held = memoryview(self._decompress(data))
        count = min(len(buffer), len(self.held))
        buffer[:count] = self.held[:count]
        self.held = self.held[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self.frame.decompress(data)
        except Exception as error:  # the type depends on the library
            raise zlib.error(_reason(error)) from None


def _zstd_frame(name: str) -> _Decompressor:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdDecompressor()
    require("zstandard", name)
    import zstandard

    return cast(_Decompressor, zstandard.ZstdDecompressor().decompressobj())


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
