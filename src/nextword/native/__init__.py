"""Compiled kernels for the CPU: quantized and float matrices times vectors, tokens through a whole model, sampling.

They are optional. `available()` says whether they were built and run here; without them torch alone computes.

Names are imported on first use: those that work on tensors need torch, the others do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library import LEVELS, available, level, limit, set_threads, threads_for
    from .operations import linear, rms_norm, silu_product
    from .packed import PackedMatrix, QuantType
    from .recurrent import RecurrentProgram, RecurrentWeights
    from .step import LayerWeights, MatrixWeights, NormWeights, Placement, Pool, Program, Tables

_HOMES = {
    "library": ("LEVELS", "available", "level", "limit", "set_threads", "threads_for"),
    "operations": ("linear", "rms_norm", "silu_product"),
    "packed": ("QuantType", "PackedMatrix"),
    "recurrent": ("RecurrentProgram", "RecurrentWeights"),
    "step": ("LayerWeights", "MatrixWeights", "NormWeights", "Placement", "Pool", "Program", "Tables"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LEVELS",
    "LayerWeights",
    "MatrixWeights",
    "NormWeights",
    "PackedMatrix",
    "Placement",
    "Pool",
    "Program",
    "QuantType",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
