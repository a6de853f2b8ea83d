"""What reaches a terminal: no escape codes where it knows none, and no colours where they are not wanted."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest


def shown(code: str, typed: str = "", **environment: str) -> bytes:
    """What a terminal gets to see of a Python program, with `typed` already typed."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"} | environment,
    )
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # the program has ended
        pass
    finally:
        os.close(ours)
        process.wait(60)
    return seen


def command(*arguments: str) -> str:
    return f"import sys; from nextword.cli import main; sys.exit(main({list(arguments)!r}))"


BAR = """
from nextword.weights.progress import on_stderr
with on_stderr("fetching", 100) as advance:
    for _ in range(4):
        advance(25)
"""
PROGRAMS = {
    "complete": (command("complete", "Hi", "--greedy", "--max-tokens", "3", "--probabilities", "2"), ""),
    "chat": (command("chat", "--max-tokens", "3"), "Hello\n/quit\n"),
    "a transfer": (BAR, ""),
    "an evaluation": (command("eval", "capitals", "--limit", "4", "--shots", "0", "--no-store"), ""),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_dumb_terminal_gets_no_escape_codes(smollm2_path: Path, program: str) -> None:
    seen = shown(*PROGRAMS[program], TERM="dumb")
    assert seen.strip()
    assert b"internal error" not in seen
    assert b"\x1b" not in seen


COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9[0-7]|10[0-7])\b[0-9;]*m")


@pytest.mark.parametrize("program", ["complete", "chat"])
def test_no_colours_reach_a_terminal_whose_user_wants_none(smollm2_path: Path, program: str) -> None:
    assert not COLOUR.search(shown(*PROGRAMS[program], TERM="xterm-256color", NO_COLOR="1"))


def test_a_terminal_that_can_gets_colours_and_a_dim_prompt(smollm2_path: Path) -> None:
    seen = shown(*PROGRAMS["complete"], TERM="xterm-256color")
    assert seen.startswith(b"\x1b[2mHi\x1b[0m")
    assert COLOUR.search(seen)
