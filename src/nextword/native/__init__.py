"""Compiled kernels for the CPU: quantized and float matrices times a few vectors, and one token's attention.

They are optional. `available()` says whether they were built and run here; without them torch alone computes.
"""

from .library import available, level, set_threads, threads_for
from .operations import attend, linear, rms_norm, silu_product
from .packed import Kind, PackedMatrix

__all__ = [
    "Kind",
    "PackedMatrix",
    "attend",
    "available",
    "level",
    "linear",
    "rms_norm",
    "set_threads",
    "silu_product",
    "threads_for",
]
