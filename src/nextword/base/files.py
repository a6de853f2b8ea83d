"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it to `path` if the block ends well, else remove it.

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
    """`atomic_write` for a library that opens its file itself: yields the path of the temporary file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Give a file the mode the umask says, where a library made it readable to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(file, 0o666 & ~mask)
