"""Small GGUF files, written by the gguf package: an independent author of what we read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def numbers(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def write(path: Path, tensors: dict[str, Any], metadata: dict[str, Any] | None = None, alignment: int = 32) -> Path:
    """Write `tensors`: name → float32 array, or → (quantized bytes, type); `metadata`: key → value."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in (metadata or {}).items():
        adders = {
            str: writer.add_string,
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        adders.get(type(value), writer.add_array)(key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
