"""Files mapped into memory, read-only: their bytes stay in the system's cache, and processes share them."""

from __future__ import annotations

import mmap
from io import BufferedReader

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def map_file(file: BufferedReader) -> Bytes:
    """The bytes of an open, nonempty file. The mapping lasts as long as any array uses it; `file` may be closed."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
