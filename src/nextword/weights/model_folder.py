"""The files of a model folder, and writing one atomically, by one process at a time.

A model is written to a working folder next to its target (inside it, if that is a folder), locked by its process.
The lock ends with the process, so that the next writer recognizes leftovers.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..base import RunError, UsageError, read_regular, try_lock
from .json_file import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_NAMES = {
    CONFIG, "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
}  # fmt: skip
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PART = ".nextword-part"
_PID = "pid"
_PATIENCE = 20  # attempts, 50 ms apart, to claim a folder that no process has signed yet


def belongs_to_model(name: str) -> bool:
    """Whether a file of this name in a model folder belongs to the model. All others are never touched."""
    return name in _NAMES or _WEIGHTS.fullmatch(name) is not None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by the rules of transformers: one file, or those in the index.

    Without either, every .safetensors file. Raises UsageError if there is none, if the index is invalid, or if it
    names files outside the folder.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        return [folder / name for name in _named_in(folder / INDEX)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(
            f"{folder} has no .safetensors file (pickle files are never read). Convert the model to safetensors"
        )
    return files


def _named_in(index: Path) -> list[str]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise UsageError(f"{index}: weight_map is {str(where)[:40]}; an object from tensors to files is expected")
    for tensor, name in where.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(f"{index}: {tensor} is listed in {name!r}, no safetensors file of this folder")
    return sorted(set(where.values()))


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write a model into; its files are moved to `out` if the block succeeds.

    A new `out` appears atomically. With `force`, the files of an existing model are replaced, and nothing else is
    touched. Ctrl-C and SIGTERM wait for the exchange, which is a few renames; if the process is killed during it,
    opening the folder reports that.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Choose another folder, or a name that ends in .gguf")
    with _working(out, force) as working:
        written = working / "model"
        written.mkdir()
        yield written
        for file in written.iterdir():
            _flush_to_disk(file)
        _refuse_unless_forced(out, force)
        if out.is_dir():
            _replace_files(written, out)
        else:
            os.rename(written, out)
        _flush_to_disk(out)


@contextmanager
def new_file(out: Path, force: bool) -> Iterator[Path]:
    """A temporary file that becomes `out` if the block succeeds. `force` replaces an existing one."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; a GGUF file is one file. Choose a name that ends in .gguf")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is not a regular file. Choose another name")
    with _working(out, force) as working:
        written = working / out.name
        yield written
        _flush_to_disk(written)
        _refuse_unless_forced(out, force)
        os.replace(written, out)


@contextmanager
def _working(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder next to `out` for this process. An OSError in the block becomes a RunError."""
    _refuse_unless_forced(out, force)
    try:
        parent = out if out.is_dir() else out.parent
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        working = parent / f".{out.name}{_PART}"
        lock = _claim(working, out)
        try:
            _refuse_unless_forced(out, force)  # another process may have written it meanwhile
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else "the disk may be full"  # numpy gives no number
        raise RunError(f"{out} could not be written ({reason}). Choose another path, or free some space") from error


def _refuse_unless_forced(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out} already exists. Choose another name, or replace it with --force")


def _claim(working: Path, out: Path) -> int:
    """The descriptor that holds the lock on an empty working folder, new or left by a dead process."""
    for _ in range(_PATIENCE):
        with suppress(FileExistsError):
            working.mkdir()
        lock = _locked(working)
        if lock is not None:
            try:
                for leftover in working.iterdir():
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                (working / _PID).write_text(str(os.getpid()))
            except OSError:
                shutil.rmtree(working, ignore_errors=True)
                os.close(lock)
                raise
            return lock
        if pid := _pid(working):
            raise RunError(f"{out} is being written by process {pid}. Wait for it, or choose another name")
        time.sleep(0.05)  # the other process has just started, or is ending
    raise RunError(f"{out} is being written by another process. Wait for it, or choose another name")


def _locked(working: Path) -> int | None:
    """Lock a folder and return its descriptor; None if another process holds the lock or the folder is gone."""
    try:
        lock = os.open(working, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with suppress(FileNotFoundError):
        if try_lock(lock) and os.path.samestat(os.fstat(lock), os.stat(working)):
            return lock
    os.close(lock)
    return None


def _pid(working: Path) -> str:
    """The id of the process that signed a working folder, or ""."""
    try:
        return read_regular(working / _PID, 20).decode("ascii", "ignore")
    except OSError:
        return ""


def _sweep(parent: Path) -> None:
    """Remove the working folders of dead processes."""
    for leftover in parent.glob(f".*{_PART}"):
        with suppress(OSError):  # no folder, or no permission to remove it
            lock = _locked(leftover)
            if lock is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)


def _replace_files(written: Path, out: Path) -> None:
    """Replace the model's files in `out` by the files of `written`.

    The configuration is removed first and added last, so that nothing opens the folder as a model in between.
    """
    new = {file.name for file in written.iterdir()}
    old = {name for name in os.listdir(out) if belongs_to_model(name)}
    for name in old | new:
        if (out / name).is_dir() and not (out / name).is_symlink():
            raise UsageError(f"{out / name} is a folder, but a model has a file of that name. Choose another folder")
    with _signals_deferred():
        (out / CONFIG).unlink(missing_ok=True)
        _flush_to_disk(out)
        for name in new - {CONFIG}:
            os.replace(written / name, out / name)
        for name in old - new:
            (out / name).unlink(missing_ok=True)
        os.replace(written / CONFIG, out / CONFIG)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM until after the block; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
