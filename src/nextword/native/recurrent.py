"""All layers of an RNN, LSTM or GRU in one kernel call, for any number of sequences.

A token's result is bit-identical whatever other tokens are in the call, however its sequence is split into calls, and
for any page placement and number of threads. The structures mirror those of recurrent.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .bindings import library
from .decode import Placement
from .packed import check_weight, rows_of

_CODE = {"rnn": 0, "lstm": 1, "gru": 2}
_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class RecurrentWeights:
    """The weights of one layer, in torch's layout: (gates * width, width) each, and biases (gates * width,)."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None


class _Layer(Structure):
    _fields_ = (("input", c_void_p), ("hidden", c_void_p), ("input_bias", c_void_p), ("hidden_bias", c_void_p))


class _Network(Structure):
    _fields_ = (("kind", c_int64), ("layer_count", c_int64), ("width", c_int64), ("layers", c_void_p))


class _Schedule(Structure):
    _fields_ = (
        ("sequences", c_int64),
        ("tokens", c_int64),
        ("pages", c_int64),
        ("first", c_void_p),
        ("count", c_void_p),
        ("source", c_void_p),
        ("target", c_void_p),
        ("hidden", c_void_p),
        ("cell", c_void_p),
    )


class RecurrentProgram:
    """All layers of a network, with shapes checked once. Keeps its weights alive, at fixed addresses.

    `kind` is "rnn", "lstm" or "gru"; every layer is `width` wide.
    """

    def __init__(self, kind: str, width: int, layers: Sequence[RecurrentWeights]) -> None:
        rows = _GATES[kind] * width
        for layer in layers:
            for weight in (layer.input, layer.hidden):
                check_weight(weight, rows, width)
            for bias in (layer.input_bias, layer.hidden_bias):
                if bias is not None:
                    check_weight(bias, rows)
        self.kind, self.width, self.layers = kind, width, tuple(layers)
        self._layers = (_Layer * len(layers))(*(_Layer(*_addresses(layer)) for layer in layers))
        self._network = _Network(_CODE[kind], len(layers), width, addressof(self._layers))

    def __reduce__(self) -> tuple[type[RecurrentProgram], tuple[object, ...]]:
        return RecurrentProgram, (self.kind, self.width, self.layers)  # a copy reads the copied weights

    def forward(self, x: Tensor, states: Sequence[Tensor], page_size: int, placement: Placement) -> Tensor:
        """The last layer's output, (tokens, width), for the embedded tokens `x` (tokens, width).

        `states` are the hidden states and, for an LSTM, the cells: (layers, pages, width) each. A sequence continues
        from the page of the position before its first token, or from zeros at position 0; each page it writes gets the
        state after the last of its tokens. Raises ValueError for mismatched arguments, before anything is written.
        """
        y = rows_of(x, self.width).clone()
        pages = states[0].shape[1]
        if len(states) != 1 + (self.kind == "lstm"):
            raise ValueError(f"{len(states)} kinds of states for an {self.kind}")
        for state in states:
            check_weight(state, len(self.layers), pages, self.width)
        if y.shape != (len(placement.positions), self.width):
            raise ValueError(f"{tuple(x.shape)} does not fit {len(placement.positions)} tokens of width {self.width}")
        spans = _spans(placement, page_size, pages)
        addresses = (*(array.ctypes.data for array in spans), *(state.data_ptr() for state in states))
        schedule = _Schedule(len(spans[0]), len(y), pages, *addresses)
        if library().nw_recur(addressof(self._network), addressof(schedule), y.data_ptr()):
            raise MemoryError(f"not enough memory for a step of {len(y)} tokens")
        return y


def _addresses(layer: RecurrentWeights) -> list[int | None]:
    weights = (layer.input, layer.hidden, layer.input_bias, layer.hidden_bias)
    return [None if weight is None else weight.data_ptr() for weight in weights]


Int64s = NDArray[np.int64]


def _spans(placement: Placement, page_size: int, pages: int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """For each sequence, longest first: its first token, its length, and the page of its state before; -1: zeros.

    Also, for each token, the page that gets the state after it; -1: none. Every page is one of `pages`.
    """
    positions, sequences, tables = placement.positions, placement.sequences, placement.page_tables
    begins = np.diff(sequences, prepend=-1) != 0
    first = np.flatnonzero(begins)
    count = np.diff(first, append=len(sequences))
    order = np.argsort(-count, kind="stable")
    first, count = first[order], count[order]
    _check(placement, page_size, first)

    page_index, offset = np.divmod(positions, page_size)
    ends = np.append(begins[1:], True) | (offset == page_size - 1)
    target = np.where(ends, tables[sequences, page_index], -1)
    start = positions[first]
    before = tables[sequences[first], (start - 1) // page_size]  # meaningless at position 0
    source = np.where(start > 0, before, -1)
    if not 0 <= target[ends].min() <= target.max() < pages:
        raise ValueError(f"a page outside the {pages}: {target[ends].min()} to {target.max()}")
    if (source >= pages).any() or (source[start > 0] < 0).any():
        raise ValueError(f"a page outside the {pages}: {source.min()} to {source.max()}")
    return first, count, source.astype(np.int64), target.astype(np.int64)


def _check(placement: Placement, page_size: int, first: Int64s) -> None:
    """Raise ValueError unless a sequence's tokens are consecutive, with valid rows and pages."""
    positions, sequences, tables = placement.positions, placement.sequences, placement.page_tables
    for array, dtype, dimensions in ((positions, np.int64, 1), (sequences, np.int64, 1), (tables, np.int32, 2)):
        if array.dtype != dtype or array.ndim != dimensions:
            raise ValueError(f"takes {np.dtype(dtype)} in {dimensions} dimensions, not {array.dtype} {array.shape}")
    if len(positions) != len(sequences) or not len(positions):
        raise ValueError(f"{len(positions)} positions for {len(sequences)} sequence numbers; at least one is needed")
    rows, width = tables.shape
    if not 0 <= sequences.min() <= sequences.max() < rows:
        raise ValueError(f"a sequence number outside the {rows} rows of the page table")
    if not 0 <= positions.min() <= positions.max() < width * page_size:
        raise ValueError(f"a position outside the {width} pages of {page_size} tokens in the page table")
    steps = np.diff(positions)
    steps[first[first > 0] - 1] = 1
    if (steps != 1).any() or len(np.unique(sequences[first])) != len(first):
        raise ValueError("tokens of a sequence must be next to each other, at consecutive positions")
