"""A status line on the terminal while a server runs."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import Service

_SECONDS = 0.5


async def show_status(service: Service) -> None:
    """Keep a line on stderr up to date, if that is a terminal. It is written only when it changes."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    shown, tokens, then = "", 0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(_SECONDS)
            now = time.monotonic()
            line = status_line(service, (service.metrics.tokens - tokens) / (now - then))
            tokens, then = service.metrics.tokens, now
            if line != shown:
                sys.stderr.write(f"\r\x1b[K{line}")
                sys.stderr.flush()
                shown = line
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def status_line(service: Service, rate: float) -> str:
    """Requests running and waiting, tokens per second, and the share of prompts found in the cache."""
    running, waiting, _ = service.load
    metrics = service.metrics
    cached = metrics.cached / metrics.prompts if metrics.prompts else 0.0
    return f"{running} running, {waiting} waiting, {rate:.0f} tokens/s, {cached:.0%} of prompts cached"
