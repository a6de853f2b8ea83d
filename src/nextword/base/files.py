"""Files: written atomically, checked before long work, read only if regular and of bounded size."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from .errors import UsageError

_LARGEST_JSON = 64 << 20  # bytes; real configurations, indexes and tokenizers are far smaller


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file next to `path`; rename it to `path` if the block succeeds, else remove it.

    `mode` is "w" (UTF-8 text) or "wb". The data is flushed to disk before the rename, so that a crash
    leaves either the old file or the new one.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """`atomic_write` for a library that opens its file itself: yields the path of the temporary file.

    A device or a pipe (/dev/null, /dev/stdout) is written to directly, since a rename would replace it.
    """
    path = Path(path)
    if _is_special(path):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    import tempfile  # only here and below: it brings shutil and random, which most commands never need

    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        try:
            yield Path(temporary)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        usual_mode(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def usual_mode(file: Path | str) -> None:
    """Give a file the mode from the umask, if a library made it readable only by its owner."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(file, 0o666 & ~mask)


def check_writable(path: Path | str, what: str, folder: bool = False) -> None:
    """Raise UsageError unless a file (or with `folder` a folder) can be written at `path`. Leaves nothing behind.

    `what` names the option in the message, such as "--report". Call it before the work whose result goes there.
    """
    path = Path(path)
    try:
        if path.is_dir() and not folder:
            raise UsageError(f"{what} {path}: this is a folder; name a file")
        if path.exists() and not path.is_dir() and folder:
            raise UsageError(f"{what} {path}: this is a file; name a folder")
        if _is_special(path):
            if not os.access(path, os.W_OK):
                raise UsageError(f"{what} {path}: permission denied")
            return
        existing = path if folder else path.parent
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        import tempfile

        with tempfile.TemporaryFile(dir=existing):
            pass
        os.fsencode(path.name)
        if len(os.fsencode(path.name)) > 240:  # 255 bytes, minus the suffix of a temporary file
            raise UsageError(f"{what} {path.name[:40]}…: the name is too long")
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise UsageError(f"{what} {path}: cannot be written ({reason}). Choose another path") from None


def open_regular(path: Path | str, limit: int | None = None) -> BufferedReader:
    """Open a regular file for reading, or a link to one. Never blocks on a FIFO and never reads a device.

    Raises UsageError for anything else, or if it is larger than `limit` bytes; OSError if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path}: this is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: not a regular file")
        if limit is not None and status.st_size > limit:
            raise UsageError(f"{path}: {status.st_size:,} bytes; at most {limit:,} are read")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Errors as in `open_regular`."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)  # it may have grown
    if len(content) > limit:
        raise UsageError(f"{path}: more than {limit:,} bytes")
    return content


def read_text(path: Path | str, limit: int, encoding: str = "utf-8") -> str:
    r"""The text of a regular file of at most `limit` bytes, with \n line endings. Errors as in `open_regular`.

    Raises UnicodeDecodeError for text not in that encoding.
    """
    return read_regular(path, limit).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """The JSON object in a regular file of bounded size; `missing` is the message if there is no such file.

    Raises UsageError that names the file and the problem.
    """
    try:
        data = json.loads(read_regular(path, _LARGEST_JSON))
    except UsageError:
        raise
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise UsageError((absent and missing) or f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data
