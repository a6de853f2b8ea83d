"""Loads the compiled library, and sets its instruction level and threads."""

from __future__ import annotations

import ctypes
import os
import platform
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

from ..base import RunError
from ..base.cores import cores

_ARM = platform.machine() in ("aarch64", "arm64")
# instruction sets that the kernels use, by number
LEVELS = ("portable", "neon") if _ARM else ("portable", "avx2", "avx-vnni", "avx512-vnni")

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "nw_level": (c_int, []),
    "nw_force_level": (None, [c_int]),
    "nw_set_threads": (None, [c_int]),
    "nw_threads": (c_int, []),
    "nw_row_bytes": (c_int64, [c_int64, c_int64]),
    "nw_multiply": (c_int, [c_void_p, c_void_p, c_int64, c_void_p, c_int]),
    "nw_embed_rows": (None, [c_void_p, c_void_p, c_int64, c_void_p]),
    "nw_convert_rows": (None, [c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "nw_rms_norm": (None, [c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p, c_int, c_void_p, c_int]),
    "nw_rms_norm_sums": (c_int64, [c_int64, c_int64]),
    "nw_rms_norm_backward": (
        None,
        [*[c_void_p] * 4, c_int64, c_int64, c_void_p, c_int, c_void_p, c_void_p, c_int],
    ),
    "nw_swiglu": (None, [c_void_p, c_int, c_int64, c_int64, c_void_p, c_int]),
    "nw_swiglu_backward": (None, [c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p, c_int]),
    "nw_rope": (None, [c_void_p, c_void_p, c_int, c_int]),
    "nw_rope_backward": (None, [c_void_p, c_void_p, c_void_p, c_int]),
    "nw_cross_entropy": (c_int, [c_void_p, c_int, c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p, c_int]),
    "nw_causal_attention": (c_int, [c_void_p, c_int]),
    "nw_causal_attention_backward": (c_int, [c_void_p, c_int]),
    "nw_draw": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64]),
    "nw_join_strings": (c_int64, [c_char_p, c_int64, c_int64, c_int64, c_void_p, c_void_p]),
    "nw_watch_mapping": (c_int, [c_void_p, c_int64, c_char_p]),
    "nw_unwatch_mapping": (None, [c_int]),
    "nw_forward": (c_int, [c_void_p, c_void_p, c_void_p]),
}


@cache
def find_library() -> ctypes.CDLL | None:
    """The loaded library with its signatures set, or None if it was not built or cannot be loaded."""
    try:
        kernels = ctypes.CDLL(str(Path(__file__).with_name("_kernels.abi3.so")))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(kernels, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # not built, built for another system, or by an older version
        return None
    kernels.nw_set_threads(_default_threads())
    return kernels


def library() -> ctypes.CDLL:
    """The library. Raises RunError if it is not `available()`."""
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
    """The instruction set that the kernels use, one of LEVELS."""
    return LEVELS[library().nw_level()]


def limit_level(level: str | None) -> None:
    """Use no instructions beyond `level`, one of LEVELS; None lifts the limit. For tests and measurements."""
    library().nw_force_level(-1 if level is None else LEVELS.index(level))


def set_threads(threads: int) -> None:
    """Set the number of threads per operation. Default: one per core, or OMP_NUM_THREADS."""
    if available():
        library().nw_set_threads(threads)


def threads() -> int:
    """The number of threads per operation; 1 without the kernels."""
    return int(library().nw_threads()) if available() else 1


def _default_threads() -> int:
    """This process's cores, or fewer if OMP_NUM_THREADS says so."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(wanted)) if wanted.isdecimal() and int(wanted) else cores()
