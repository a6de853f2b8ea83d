"""Compiled CPU kernels: matrix products, whole models, passes of training, sampling. No torch.

They are optional: `available()` says whether they can be used; without them everything runs on torch.
"""

from .bindings import LEVELS, available, level, limit_level, set_threads, threads

__all__ = ["LEVELS", "available", "level", "limit_level", "set_threads", "threads"]
