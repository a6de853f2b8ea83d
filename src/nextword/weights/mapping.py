"""Files mapped into memory, read-only: their bytes stay in the system's cache, and processes share them."""

from __future__ import annotations

import mmap
import os
import weakref
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..native.bindings import find_library

Bytes = NDArray[np.uint8]


def map_file(file: BufferedReader, path: Path) -> Bytes:
    """The bytes of an open, nonempty file. The mapping lasts as long as any array uses it; `file` may be closed.

    If the file is cut short meanwhile, reading what is gone ends the process with one line (see native/mapping.c).
    """
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stored = np.frombuffer(mapped, np.uint8)
    _watch(mapped, stored, path)
    return stored


def _watch(mapped: mmap.mmap, stored: Bytes, path: Path) -> None:
    kernels = find_library()
    if kernels is None:
        return
    line = (
        f"nextword: {path} changed while it was in use: it was cut short, or its disk is gone."
        " Restore the file, and start again\n"
    )
    slot = kernels.nw_watch_mapping(stored.ctypes.data, len(stored), os.fsencode(line))
    weakref.finalize(mapped, kernels.nw_unwatch_mapping, slot).atexit = False
