"""Paged keys and values of a transformer."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..backend import Batch
from ..base import UsageError
from ..native.matmul import TYPES
from ..spec import ModelSpec
from ..weights import gguf_types
from ..weights.floats import KINDS
from .rope import RopeCache
from .structures import BatchStruct, KVCacheStruct, PlacementStruct, RopeTableStruct

KVType = Literal["float32", "float16", "q8_0"]
KV_DTYPES = ("auto", "float32", "float16", "q8_0")
PAGE_SIZE = 32  # tokens; see docs/decisions.md


class KVCache:
    """Pages of (layers, 2, kv_heads, page_size, head_width): keys and values. They take memory page by page."""

    rewindable = True

    def __init__(self, spec: ModelSpec, kv_dtype: KVType, page_size: int = PAGE_SIZE) -> None:
        if page_size < 8 or page_size % 8:
            raise ValueError(f"pages of {page_size} tokens: give a multiple of 8")
        self.spec, self.kv_dtype, self.page_size = spec, kv_dtype, page_size
        heads = 2 * spec.layers * spec.kv_heads
        self.page_bytes = heads * page_size * _head_bytes(kv_dtype, spec.head_width)
        full = RopeCache(spec.rope, spec.head_width)
        local = full if spec.local_rope is None else RopeCache(spec.local_rope, spec.head_width)
        self._ropes = (full, local) if spec.position == "rotary" else ()

    def allocate(self, pages: int) -> None:
        """Memory for `pages` pages, which the system takes when they are written to."""
        self.pool = aligned_zeros((pages, self.page_bytes))
        code = TYPES[KINDS.get(self.kv_dtype, self.kv_dtype)]
        self._struct = KVCacheStruct(code, pages, self.page_bytes, self.pool.ctypes.data)

    def copy_page(self, source: int, target: int) -> None:
        self.pool[target] = self.pool[source]

    def place(self, batch: Batch, struct: BatchStruct) -> object:
        """Fill in where the tokens stand; returns what must live until the call ends."""
        rows, width = batch.page_tables.shape
        addresses = [array.ctypes.data for array in (batch.positions, batch.sequences, batch.page_tables)]
        struct.at = PlacementStruct(*addresses, len(batch.positions), width, self.page_size)
        struct.table_rows = rows
        struct.cache = self._struct
        longest = min(int(batch.positions.max()) + 1, width * self.page_size)  # a position beyond is refused
        tables = [rope.upto(longest) for rope in self._ropes]
        for index, (cosine, sine) in enumerate(tables):
            struct.tables[index] = RopeTableStruct(cosine.ctypes.data, sine.ctypes.data, cosine.shape[1])
        return tables


def _head_bytes(kv_dtype: KVType, width: int) -> int:
    """Bytes of a key or value of `width` numbers. Raises UsageError if the type does not fit."""
    block = gguf_types.TYPES[KINDS.get(kv_dtype, kv_dtype)]
    if width % block.values:
        raise UsageError(
            f"kv-dtype {kv_dtype} needs heads of a multiple of {block.values} numbers; this model's have {width}."
            " Use: --kv-dtype float16"
        )
    return width // block.values * block.nbytes


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Zeroed bytes that begin on a cache line, and take memory only when written to."""
    size = int(np.prod(shape, dtype=np.int64))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)
