"""Compiled kernels for the CPU: quantized and float matrices times vectors, and tokens through a whole model.

They are optional. `available()` says whether they were built and run here; without them torch alone computes.
"""

from .library import LEVELS, available, level, limit, set_threads, threads_for
from .operations import linear, rms_norm, silu_product
from .packed import Kind, PackedMatrix
from .recurrent import RecurrentProgram, RecurrentWeights
from .step import LayerWeights, MatrixWeights, NormWeights, Placement, Pool, Program, Tables

__all__ = [
    "LEVELS",
    "Kind",
    "LayerWeights",
    "MatrixWeights",
    "NormWeights",
    "PackedMatrix",
    "Placement",
    "Pool",
    "Program",
    "RecurrentProgram",
    "RecurrentWeights",
    "Tables",
    "available",
    "level",
    "limit",
    "linear",
    "rms_norm",
    "set_threads",
    "silu_product",
    "threads_for",
]
