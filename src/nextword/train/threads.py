"""torch's number of threads, a setting of the whole process, kept as the caller left it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore torch's number of threads afterwards; a context manager, or a decorator of a function that changes it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
