"""Loads the compiled library, and sets its instructions and threads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..base import RunError
from ..base.cores import cores

TORCH_THREADS_FROM = 48  # vectors from which on torch's own operations are worth sharing out

LEVELS = ("portable", "avx2", "avx512-vnni")  # instructions that the kernels know to use, by number

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "nw_level": (c_int, []),
    "nw_force_level": (None, [c_int]),
    "nw_set_threads": (None, [c_int]),
    "nw_threads": (c_int, []),
    "nw_borrow_torch_threads": (None, [c_int]),
    "nw_packed_bytes": (c_int64, [c_int, c_int64, c_int64]),
    "nw_pack": (None, [c_int, c_void_p, c_int64, c_int64, c_void_p]),
    "nw_unpack": (None, [c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p]),
    "nw_multiply": (c_int, [c_int, c_int, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p]),
    "nw_rms_norm": (None, [c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p, c_void_p, c_int]),
    "nw_rms_norm_sums": (c_int64, [c_int64, c_int64]),
    "nw_rms_norm_backward": (None, [*[c_void_p] * 4, c_int64, c_int64, *[c_void_p] * 3, c_int]),
    "nw_swiglu": (None, [c_void_p, c_int64, c_int64, c_void_p, c_int]),
    "nw_swiglu_backward": (None, [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int]),
    "nw_rope": (None, [c_void_p, c_void_p, c_int]),
    "nw_rope_backward": (None, [c_void_p, c_void_p, c_void_p, c_int]),
    "nw_cross_entropy": (None, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p, c_int]),
    "nw_draw": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64]),
    "nw_decode": (c_int, [c_void_p, c_void_p, c_void_p]),
    "nw_recur": (c_int, [c_void_p, c_void_p, c_void_p]),
}


@cache
def find_library() -> ctypes.CDLL | None:
    """The loaded library with its signatures set, or None where it was not built or cannot be loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.exists():
            try:
                kernels = ctypes.CDLL(str(path))
                for name, (result, arguments) in _SIGNATURES.items():
                    function = getattr(kernels, name)
                    function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError):  # built for another system, or by an older version
                continue
            kernels.nw_set_threads(_default_threads())
            return kernels
    return None


def library() -> ctypes.CDLL:
    """The library. Raises RunError where it is not `available()`."""
    kernels = find_library()
    if kernels is None:
        raise RunError(
            "nextword's compiled CPU kernels are missing: nextword was installed without a C compiler."
            " Install one and reinstall nextword, or use: --dtype float32"
        )
    return kernels


def available() -> bool:
    """Whether the compiled kernels can be used in this process."""
    return find_library() is not None


def level() -> str:
    """Which instructions the kernels use here, one of LEVELS."""
    return LEVELS[library().nw_level()]


def limit_level(level: str | None) -> None:
    """Use no instructions beyond `level`, one of LEVELS; None lifts the limit. For tests and measurements."""
    library().nw_force_level(-1 if level is None else LEVELS.index(level))


def set_threads(threads: int) -> None:
    """How many threads share the work of one operation, from the next one on. Default: as many as torch uses."""
    if available():
        library().nw_set_threads(threads)


@contextmanager
def threads_for(vectors: int) -> Iterator[None]:
    """Share the cores between torch's threads and the kernels', for a pass over `vectors` positions.

    With few, torch's operations are too small to share out, and its idle threads would take the cores from the
    kernels': torch gets one thread, and the kernels their own, which wake faster. With many, torch's large operations
    alternate with the kernels', which then borrow torch's threads. Results are the same. It holds for the calling
    thread alone, so that passes in several threads do not end up with each other's counts.
    """
    if not available():
        yield
        return
    import torch

    few = vectors < TORCH_THREADS_FROM
    library().nw_borrow_torch_threads(int(not few))
    before = torch.get_num_threads()  # which also gives a new thread its count
    if few:
        _thread_setter()(1)
    try:
        yield
    finally:
        if few:
            _thread_setter()(before)
        library().nw_borrow_torch_threads(0)


@cache
def _thread_setter() -> Callable[[int], object]:
    """Sets how many threads torch uses for the operations of the calling thread.

    That is OpenMP's own function where torch computes with it: torch.set_num_threads would also change the default of
    threads that start meanwhile.
    """
    import torch

    return getattr(ctypes.CDLL(None), "omp_set_num_threads", torch.set_num_threads)


def _default_threads() -> int:
    """This process's cores, or fewer if torch was told so (OMP_NUM_THREADS, torch.set_num_threads)."""
    torch = sys.modules.get("torch")  # not imported for this alone
    if torch is not None:
        return min(cores(), int(torch.get_num_threads()))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(wanted)) if wanted.isdecimal() else cores()
