"""The status line, as a terminal shows it: below the log, in one row, cleared at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving import Server, running

LOGGED = r"\d\d:\d\d:\d\d POST /v1/completions 200 [\d.]+ s, 4 tokens"


class Terminal:
    """A terminal of this width that knows what the status line uses: CR, LF and erasing to the end of the line."""

    def __init__(self, columns: int) -> None:
        self.columns, self.written = columns, ""
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.ours, 4096):
                self.written += data.decode()
        except OSError:  # nobody holds the other end
            pass

    def close(self) -> None:
        """Let go, and take what is left to read."""
        os.close(self.theirs)
        self._reader.join()
        os.close(self.ours)

    @property
    def rows(self) -> list[str]:
        rows, column = [""], 0
        for part in re.findall(r"\x1b\[K|\x1b|[^\x1b]", self.written):
            if part == "\r":
                column = 0
            elif part == "\n":
                rows.append("")
            elif part == "\x1b[K":
                rows[-1] = rows[-1][:column]
            else:
                assert part != "\x1b", "another control sequence"
                if column == self.columns:
                    rows, column = [*rows, ""], 0
                rows[-1] = rows[-1][:column].ljust(column) + part + rows[-1][column + 1 :]
                column += 1
        return rows


@contextmanager
def on_terminal(columns: int, *arguments: Any, **environment: str) -> Iterator[tuple[Server, Terminal]]:
    terminal = Terminal(columns)
    try:
        with running(*arguments, "--access-log", stderr=terminal.theirs, **environment) as server:
            yield server, terminal
            code, _ = server.end()
            assert code == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(("columns", "environment"), [(80, {}), (60, {"NO_COLOR": "1"})])
def test_the_log_is_above_the_status_line(tiny_path: Path, columns: int, environment: dict[str, str]) -> None:
    with on_terminal(columns, tiny_path, TERM="xterm", **environment) as (server, terminal):
        status = r"0 running, 0 waiting, 0 tokens/s, {}% of prompts cached"
        server.until(lambda: re.fullmatch(status.format(0), terminal.rows[-1]) is not None)
        for _ in range(3):
            server.complete("abcdefghijklmnopqrstuvwxyz", max_tokens=4, ignore_eos=True)
        server.until(lambda: re.fullmatch(status.format("[1-9]\\d"), terminal.rows[-1]) is not None)
        assert [bool(re.fullmatch(LOGGED, row)) for row in terminal.rows] == [True, True, True, False]
    assert [bool(re.fullmatch(LOGGED, row)) for row in terminal.rows[:-1]] == [True] * 3
    assert terminal.rows[-1] == "", "the status line is left on the terminal"


def test_a_narrow_terminal_shows_what_fits(tiny_path: Path) -> None:
    shown = "0 running"
    with on_terminal(20, tiny_path, TERM="xterm") as (server, terminal):
        server.until(lambda: terminal.rows[-1] == shown)
        for _ in range(2):
            server.get("/health")
        server.until(lambda: "".join(terminal.rows[:-1]).count("GET") == 2 and terminal.rows[-1] == shown)
    assert terminal.rows[-1] == ""


def test_a_terminal_without_control_sequences_gets_the_log_alone(tiny_path: Path) -> None:
    with on_terminal(80, tiny_path, TERM="dumb") as (server, terminal):
        server.complete("a", max_tokens=4, ignore_eos=True)
    assert "\x1b" not in terminal.written
    assert re.fullmatch(LOGGED, terminal.rows[0])
