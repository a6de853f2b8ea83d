"""Downloads one file of a wheel with the user's pip or uv, and their configuration.

The file gets its final name once its SHA-256 is verified; two processes do not download the same model at once.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

from ..base import RunError, atomic_write, locked
from ..base.user_folders import CACHE_VARIABLE
from .catalogue import WheelMember
from .progress import Advance, on_stderr

_CHUNK = 1 << 20  # bytes
_POLL_SECONDS = 0.2  # between checks of pip's progress


def fetch(name: str, member: WheelMember, target: Path) -> Path:
    """Copy `member` to `target`, from the installed package or with pip or uv. Raises RunError with alternatives."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", lambda: _log(f"another process is downloading {name}; waiting for it")):
            if target.exists() and target.stat().st_size == member.bytes:
                return target  # another process downloaded it while this one waited
            _remove_leftovers(folder)
            if not _copy_installed(member, target):
                with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-", ignore_cleanup_errors=True) as scratch:
                    _unpack(_download(name, member, Path(scratch)), member, target)
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where, why = folder, "no space left"
        raise RunError(f"{where}: {why}. Set {CACHE_VARIABLE} to a writable folder with enough space") from error
    return target


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left."""
    for path in (*folder.glob(".pip-*"), *folder.glob(".*.part")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _log(text: str) -> None:
    print(f"nextword: {text}", file=sys.stderr, flush=True)


def _download(name: str, member: WheelMember, scratch: Path) -> Path:
    """Let pip download the wheel, or uv install the file, to `scratch`; progress goes to stderr."""
    by_hand = f"Manually: install {member.requirement} (nextword finds the file in it), or give a file as --model"
    installer, command = _command(member, scratch)
    if not command:
        raise RunError(f"{name} cannot be downloaded: neither pip nor uv is installed. {by_hand}")
    log = scratch / "log"
    with on_stderr(f"downloading {name}", member.wheel_bytes) as advance:
        code = _run(command, scratch, log, advance)
    said = log.read_text(encoding="utf-8", errors="replace")
    if code == 0:
        return next(scratch.glob("*.whl"), scratch / member.path)
    if "No space left" in said:
        raise OSError(errno.ENOSPC, "no space left")
    errors = [match[1] for match in re.finditer(r"^\s*(?:ERROR:|error:|×)\s*(.+)", said, re.MULTILINE)]
    reason = "no connection to the package index" if "connection broken" in said else (errors or ["no reason given"])[0]
    raise RunError(f"{name} could not be downloaded: {installer}: {reason}. {by_hand}")


def _command(member: WheelMember, scratch: Path) -> tuple[str, list[str]]:
    """The available installer, and its command line; pip can download, uv only install."""
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    options = ["-q", "--no-deps", "--only-binary=:all:", member.requirement]
    if pip[0]:
        options += ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries=2", f"--dest={scratch}"]
        return "pip", [*pip, "download", *options]
    uv = shutil.which("uv")
    return "uv", [uv, "pip", "install", *options, f"--target={scratch}", "--python", sys.executable] if uv else []


def _run(command: list[str], scratch: Path, log: Path, advance: Advance) -> int:
    """Run an installer and return its exit code; `advance` reports the wheel's growth."""
    with log.open("w") as output:
        # its temporary files go to our folder, which is removed in any case
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"TMPDIR": str(scratch)}
        )
        downloaded = 0
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                previous, downloaded = downloaded, max(downloaded, _largest_wheel(scratch))
                advance(downloaded - previous)
        finally:
            process.kill()
            process.wait()
    return process.returncode


def _largest_wheel(folder: Path) -> int:
    """Bytes of pip's temporary file or its copy, whichever is larger."""
    sizes = [0]
    with suppress(FileNotFoundError):  # pip moves it
        for path in folder.rglob("*.whl"):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _unpack(wheel: Path, member: WheelMember, target: Path) -> None:
    if wheel.suffix != ".whl":
        with wheel.open("rb") as source:
            return _copy_checked(source, member, target)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source:
            _copy_checked(source, member, target)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RunError(f"{member.requirement}: {member.path} cannot be read from its wheel: {error}") from error


def _copy_checked(source: IO[bytes], member: WheelMember, target: Path) -> None:
    """Copy at most the expected size, and rename the copy only if its checksum matches."""
    digest, remaining = hashlib.sha256(), member.bytes
    with atomic_write(target, "wb") as file:
        while remaining and (chunk := source.read(min(_CHUNK, remaining))):
            digest.update(chunk)
            file.write(chunk)
            remaining -= len(chunk)
        if remaining or source.read(1) or digest.hexdigest() != member.sha256:
            raise RunError(f"{member.requirement}: {member.path} has the wrong size or checksum; nothing was kept")


def _copy_installed(member: WheelMember, target: Path) -> bool:
    """Copy the file from the installed package; False if it is not installed, or the file differs."""
    try:
        path = Path(str(distribution(member.package).locate_file(member.path)))
        with path.open("rb") as source:
            _copy_checked(source, member, target)
    except (PackageNotFoundError, RunError, FileNotFoundError):
        return False
    return True
