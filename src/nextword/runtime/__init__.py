"""The CPU backend of the engine: compiled kernels over weights as they are stored. No torch.

`load_backend` runs a file or folder; `CpuBackend.from_arrays` runs float32 arrays, such as a torch model's own memory.
"""

from .backend import CpuBackend, check_types, load_backend
from .kv_cache import KV_DTYPES
from .weights import DTYPES

__all__ = ["DTYPES", "KV_DTYPES", "CpuBackend", "check_types", "load_backend"]
