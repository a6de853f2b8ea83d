"""Progress of a transfer on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

SECONDS_BETWEEN_LINES = 5.0

Advance = Callable[[int], None]  # called with the number of bytes since the last call


def on_stderr(title: str, total: int) -> AbstractContextManager[Advance]:
    """Report a transfer of `total` bytes: `with on_stderr("downloading x", 10_000) as advance: advance(1_000)`."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return (_bar if terminal else _lines)(title, total, sys.stderr)


@contextmanager
def _bar(title: str, total: int, stream: TextIO) -> Iterator[Advance]:
    from rich import progress
    from rich.console import Console

    columns: tuple[progress.ProgressColumn, ...] = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(title: str, total: int, stream: TextIO) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def log(text: str) -> None:
        print(f"nextword: {title}: {text}", file=stream, flush=True)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB ({100 * done // max(total, 1)}%)")

    log(f"{total / 1e6:.1f} MB")
    yield advance
    log(f"done in {time.monotonic() - start:.1f} s")
