"""Runs a command line in the process of the tests."""

from __future__ import annotations

import pytest

from nextword.cli import _console, main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of `nextword ARGUMENTS`."""
    _console.output.cache_clear()  # they hold the streams of the call before
    _console.messages.cache_clear()
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err
