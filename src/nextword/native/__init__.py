"""Compiled CPU kernels: matrix products, whole models, elementwise training ops, sampling.

They are optional: `available()` says whether they can be used; without them everything runs on torch. This package
does not import torch; its modules matmul, elementwise, decode and recurrent do; logits works on numpy arrays.
"""

from .bindings import LEVELS, available, level, limit_level, set_threads, threads_for

__all__ = ["LEVELS", "available", "level", "limit_level", "set_threads", "threads_for"]
