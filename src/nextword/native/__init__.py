"""Compiled CPU kernels: matrix products, whole models, elementwise training ops, sampling.

They are optional: `available()` says whether they can be used; without them everything runs on torch. This package
does not import torch; its module elementwise, of training, does.
"""

from .bindings import LEVELS, available, level, limit_level, set_threads

__all__ = ["LEVELS", "available", "level", "limit_level", "set_threads"]
