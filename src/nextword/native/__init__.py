"""Compiled kernels for the CPU: matrix products, whole models, training's elementwise operations, sampling.

They are optional: `available()` says whether they were built and run here; without them torch alone computes. This
package imports no torch. Its modules matmul, elementwise, decode and recurrent do; logits works on numpy arrays.
"""

from .bindings import LEVELS, available, level, limit_level, set_threads, threads_for

__all__ = ["LEVELS", "available", "level", "limit_level", "set_threads", "threads_for"]
