"""Converts errors of the tokenizers library to UsageError."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..base import UsageError

Result = TypeVar("Result")


def as_usage_error(where: object, call: Callable[[], Result], what: str = "its tokenizer cannot be built") -> Result:
    """Run `call`; anything the library raises becomes the UsageError "<where>: <what> (<reason>)".

    The library is written in Rust: a panic in it arrives as a BaseException.
    """
    try:
        return call()
    except (UsageError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UsageError(f"{where}: {what} ({reason})") from None
