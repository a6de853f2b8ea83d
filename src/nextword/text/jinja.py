"""Renders untrusted Jinja templates of chats and tasks in a worker process.

The worker has nothing but jinja2's sandbox, with limits on time and memory, and is killed if it does not answer:
nothing else stops a loop inside one C call, such as 9 ** 9 ** 9.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..base import RunError, UsageError

TIME_LIMIT = 2.0  # seconds per template
_START_LIMIT = 20.0  # seconds until the worker is up
_IDLE_LIMIT = 60.0  # seconds after which an idle worker exits
_MEMORY_LIMIT = 512 << 20  # bytes of address space
_LARGEST_ANSWER = 64 << 20  # bytes
_WORKER = Path(__file__).with_name("_jinja_worker.py")


class TemplateStopped(UsageError):
    """A template took too much time or memory, as it would with other variables."""


def render(template: str, variables: Mapping[str, Any], what: str, strict: bool = False) -> str:
    """Render a template with `variables`, plain data. `what` names it in messages.

    With `strict`, a missing variable is an error and white space is kept; otherwise the rules of transformers' chat
    templates apply. Raises UsageError if the template fails, TemplateStopped if it takes longer than `TIME_LIMIT`
    seconds or too much memory.
    """
    try:
        request = json.dumps({"template": template, "variables": variables, "strict": strict}).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise UsageError(f"the variables of {what} are not plain data ({problem})") from None
    return _worker.render(request, what)


class _Silent(Exception):
    """The worker did not answer: it was too slow, used too much memory, or died."""


class _Worker:
    """The worker: started on first use, and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, request: bytes, what: str) -> str:
        with self._lock:
            reply = self._ask(request, what)
        if "error" in reply:
            raise UsageError(f"{what} fails: {reply['error']}")
        text: str = reply["text"]
        return text

    def close(self) -> None:
        """End the process. The next `render` starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes, what: str) -> dict[str, Any]:
        process = self._running()
        try:
            return _exchange(process, request, TIME_LIMIT)
        except _Silent as reason:
            self._end()
            raise TemplateStopped(f"{what} was stopped: {reason}") from None
        except BaseException:
            self._end()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        """A process that is ready for a request."""
        if self._process is not None and self._process.poll() is None:
            try:
                _exchange(self._process, b"\n", TIME_LIMIT)  # it may be about to exit after being idle
                return self._process
            except _Silent:
                pass
        self._end()
        self._process = _start()
        try:
            _exchange(self._process, b"\n", _START_LIMIT)
        except _Silent as reason:
            self._end()
            raise RunError(f"the process that renders templates does not start: {reason}") from None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    folders = {str(Path(_home(package)).parent) for package in ("jinja2", "markupsafe")}
    command = [
        sys.executable,
        "-I",
        "-S",
        str(_WORKER),
        str(_MEMORY_LIMIT),
        str(_IDLE_LIMIT),
        *sorted(folders),
    ]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach the worker
            env={"PATH": os.environ.get("PATH", "")},
        )
    except OSError as problem:
        raise RunError(f"the process that renders templates does not start: {problem}") from None


def _home(package: str) -> str:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RunError(f"templates need the package {package}. Install it: pip install {package}")
    return spec.submodule_search_locations[0]


def _exchange(process: subprocess.Popen[bytes], request: bytes, limit: float) -> dict[str, Any]:
    """Send one line, receive one line, within `limit` seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    until = time.monotonic() + limit
    sending, answer = memoryview(request), bytearray()
    to, back = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(to, False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(to, selectors.EVENT_WRITE)
        waiting.register(back, selectors.EVENT_READ)
        while not answer.endswith(b"\n"):
            ready = waiting.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise _Silent(f"it took longer than {limit:g} seconds")
            for key, _ in ready:
                if key.fd == back:
                    _receive(back, answer)
                    continue
                sending = _send(to, sending)
                if not sending:
                    waiting.unregister(to)
    reply: dict[str, Any] = json.loads(answer)
    return reply


def _send(to: int, data: memoryview) -> memoryview:
    try:
        return data[os.write(to, data[: 1 << 16]) :]
    except BlockingIOError:
        return data
    except OSError:
        raise _Silent("its process ended") from None


def _receive(back: int, answer: bytearray) -> None:
    piece = os.read(back, 1 << 20)
    answer += piece
    if not piece:
        raise _Silent("it used too much memory or time")
    if len(answer) > _LARGEST_ANSWER:
        raise _Silent(f"its text is longer than {_LARGEST_ANSWER} bytes")


_worker = _Worker()
atexit.register(_worker.close)
