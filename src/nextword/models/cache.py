"""What a transformer carries from token to token: the keys and values of all positions so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..native import Step
from ..spec import ModelSpec

BLOCK = 256  # positions added at a time when a cache grows


class KVCache:
    """Keys and values of every layer, preallocated and grown in blocks.

    `keys[layer]` and `values[layer]` are (batch, kv_heads, capacity, head_width). Rows may have different
    lengths; what lies beyond a row's length is never attended to. `step` is the model's compiled step, once it was
    needed: it belongs to the sequence, since another may meanwhile begin with other weights.
    """

    step: Step | None = None

    def __init__(
        self,
        spec: ModelSpec,
        batch: int,
        capacity: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, spec.kv_heads, _whole_blocks(capacity), spec.head_width)
        where = torch.device(device)
        self.keys = [_zeros(shape, dtype, where) for _ in range(spec.layers)]
        self.values = [_zeros(shape, dtype, where) for _ in range(spec.layers)]
        self.lengths = [0] * batch

    @staticmethod
    def bytes_a_row(spec: ModelSpec, positions: int, dtype: torch.dtype) -> int:
        """Bytes of one row's keys and values: 2 x layers x kv_heads x head_width x positions x bytes a number."""
        return 2 * spec.layers * spec.kv_heads * spec.head_width * _whole_blocks(positions) * dtype.itemsize

    @property
    def capacity(self) -> int:
        """Positions there is room for, a row."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, room not yet used included."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def reserve(self, positions: int) -> None:
        """Make room for `positions` positions a row, keeping what is there."""
        if positions <= self.capacity:
            return
        capacity = max(_whole_blocks(positions), min(2 * self.capacity, self.capacity + 8 * BLOCK))
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                batch, heads, used, width = old.shape
                grown = _zeros((batch, heads, capacity, width), old.dtype, old.device)
                grown[:, :, :used] = old
                tensors[layer] = grown

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `keys` and `values` (batch, kv_heads, time, head_width) behind each row's length.

        Returns all keys and values up to the longest row, (batch, kv_heads, longest, head_width). The
        lengths move only with `advance`, since every layer writes at the same positions.
        """
        time = keys.shape[2]
        end = max(self.lengths) + time
        if min(self.lengths) == end - time:
            self.keys[layer][:, :, end - time : end] = keys
            self.values[layer][:, :, end - time : end] = values
        else:
            for row, start in enumerate(self.lengths):
                self.keys[layer][row, :, start : start + time] = keys[row]
                self.values[layer][row, :, start : start + time] = values[row]
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens just written as seen: `counts[row]` of them (fewer than written if padded)."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def back(self, length: int) -> int:
        """Forget what a single row holds beyond its first `length` tokens; see `State.back`."""
        self.lengths = [min(length, self.lengths[0])]
        return self.lengths[0]

    def keep(self, written: Sequence[int]) -> None:
        """Of the tokens just written behind a single row, count those at `written` as seen, in that order."""
        start = self.lengths[0]
        if list(written) != list(range(len(written))):
            index = torch.tensor(written, device=self.keys[0].device) + start
            for tensors in (self.keys, self.values):
                for tensor in tensors:
                    tensor[:, :, start : start + len(written)] = tensor.index_select(2, index)
        self.advance([len(written)])

    @classmethod
    def stack(cls, states: Sequence[KVCache]) -> KVCache:
        """One cache whose rows are those of `states`, in order; see `State.stack`."""
        capacity = max(cache.capacity for cache in states)
        for cache in states:
            cache.reserve(capacity)
        stacked = object.__new__(KVCache)
        stacked.keys = [torch.cat(layers) for layers in zip(*(cache.keys for cache in states), strict=True)]
        stacked.values = [torch.cat(layers) for layers in zip(*(cache.values for cache in states), strict=True)]
        stacked.step = states[0].step
        stacked.lengths = [length for cache in states for length in cache.lengths]
        return stacked

    def select(self, rows: Sequence[int]) -> KVCache:
        """The given rows as a cache of their own; see `State.select`."""
        chosen = object.__new__(KVCache)
        index = torch.tensor(rows, device=self.keys[0].device)
        chosen.keys = [tensor.index_select(0, index) for tensor in self.keys]
        chosen.values = [tensor.index_select(0, index) for tensor in self.values]
        chosen.step = self.step
        chosen.lengths = [self.lengths[row] for row in rows]
        return chosen


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only when written to, on a CPU: the system hands out untouched pages as zeros."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _whole_blocks(positions: int) -> int:
    return max(1, -(-positions // BLOCK)) * BLOCK
