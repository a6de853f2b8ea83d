"""Shared by every package: errors, units, atomic files."""

from .display import printable
from .errors import NextwordError, RunError, UsageError
from .extras import installed, require, require_torch
from .files import (
    atomic_path,
    atomic_write,
    check_writable,
    open_regular,
    read_json,
    read_regular,
    read_text,
    usual_mode,
)
from .locks import locked, try_lock
from .memory import free_memory, return_freed_memory

__all__ = [
    "NextwordError",
    "RunError",
    "UsageError",
    "atomic_path",
    "atomic_write",
    "check_writable",
    "free_memory",
    "installed",
    "locked",
    "open_regular",
    "printable",
    "read_json",
    "read_regular",
    "read_text",
    "require",
    "require_torch",
    "return_freed_memory",
    "try_lock",
    "usual_mode",
]
