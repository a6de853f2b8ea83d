"""How far a long transfer is, on stderr: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO

SECONDS_BETWEEN_LINES = 5.0

# advance(bytes more), negative when a transfer starts over
Advance = Callable[[int], None]
# report("fetching smollm2", total bytes) opens a transfer and gives its `advance`
Report = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Report nothing."""
    yield lambda count: None


@contextmanager
def on_stderr(what: str, total: int) -> Iterator[Advance]:
    """Report on standard error, if there is one."""
    stream = sys.stderr
    if stream is None:
        chosen: AbstractContextManager[Advance] = silent(what, total)
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        chosen = _bar(what, total, stream)
    else:
        chosen = _lines(what, total, stream)
    with chosen as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, stream: TextIO) -> Iterator[Advance]:
    from rich import progress
    from rich.console import Console

    columns: tuple[Any, ...] = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(what: str, total: int, stream: TextIO) -> Iterator[Advance]:
    begun = last = time.monotonic()
    done = 0

    def say(text: str) -> None:
        print(f"nextword: {what}: {text}", file=stream, flush=True)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            say(f"{_mega(done)} of {_mega(total)} MB ({100 * done // max(total, 1)}%)")

    say(f"{_mega(total)} MB")
    yield advance
    say(f"done in {time.monotonic() - begun:.1f} s")


def _mega(count: int) -> str:
    return f"{count / 1e6:.1f}"
