"""Exceptions → a one-line message and an exit code."""

from __future__ import annotations

import errno
import os

import click

from ..base import NextwordError, printable

_LONGEST = 600  # characters; the middle is cut, since the fix comes last
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")


def explain(error: BaseException) -> tuple[str, int]:
    """The message, without the program's name before it, and the exit code.

    Messages quote files and command lines: control characters are escaped, and long messages cut.
    """
    message, code = _explained(error)
    message = printable(message)
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    return message, code


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, NextwordError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error), error.exit_code
    if _is_out_of_memory(error):
        return "out of memory. Use a smaller model, fewer completions at once or a shorter text", 1
    if isinstance(error, OSError):
        return _system(error), 1
    if isinstance(error, SystemExit):
        return _one_line(str(error.code)), 1
    what = _one_line(f"{type(error).__name__}: {error}")
    return f"internal error: {what}. NEXTWORD_DEBUG=1 shows where; please report it", 1


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _usage(error: click.ClickException) -> str:
    message = _one_line(error.format_message())
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See: {context.command_path} --help"


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's own class, compared by name so that reporting an error never imports torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS)


def _system(error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    reason = reason[:1].lower() + reason[1:]
    where = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
    fixes = {
        errno.ENOSPC: ". Free some space, or write elsewhere",
        errno.EDQUOT: ". Your quota is used up",
        errno.EBADF: ". Standard output is closed",
    }
    return _one_line(f"{where}{reason}{fixes.get(error.errno or 0, '')}")
