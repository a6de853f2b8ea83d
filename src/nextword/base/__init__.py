"""Words that every room shares: errors, units, atomic files."""

from .errors import NextwordError, RunError, UsageError
from .files import atomic_path, atomic_write, usual_mode
from .memory import free_memory

__all__ = ["NextwordError", "RunError", "UsageError", "atomic_path", "atomic_write", "free_memory", "usual_mode"]
