"""What a server writes on stderr: the lines of its log and, on a terminal, a line of status below them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import Service

_SECONDS = 0.5
_CLEAR = "\r\x1b[K"


class Status:
    """The status line of one server. Lines of the log are written above it."""

    def __init__(self, service: Service) -> None:
        self._service, self._shown = service, ""

    def log(self, text: str) -> None:
        """Write a line, or several."""
        self._write(f"{text}\n", self._shown)

    async def keep(self) -> None:
        """Keep the line up to date, if stderr is a terminal. It is written only when it changes."""
        if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        tokens, then = 0, time.monotonic()
        try:
            while True:
                await asyncio.sleep(_SECONDS)
                made, now = self._service.metrics.tokens, time.monotonic()
                line = status_line(self._service, (made - tokens) / (now - then), _columns())
                tokens, then = made, now
                if line != self._shown:
                    self._write("", line)
        finally:
            self._write("", "")

    def _write(self, text: str, line: str) -> None:
        if sys.stderr is not None:
            sys.stderr.write(f"{_CLEAR if self._shown else ''}{text}{line}")
            sys.stderr.flush()
        self._shown = line


def status_line(service: Service, rate: float, columns: int = 80) -> str:
    """Requests running and waiting, tokens per second, and the share of prompts found in the cache, as fits."""
    running, waiting, _ = service.load
    metrics = service.metrics
    cached = metrics.cached / metrics.prompts if metrics.prompts else 0.0
    parts = [f"{running} running", f"{waiting} waiting", f"{rate:.0f} tokens/s", f"{cached:.0%} of prompts cached"]
    while parts and len(", ".join(parts)) >= columns:
        parts.pop()
    return ", ".join(parts)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
