"""All layers of a transformer in one kernel call, for any mix of prefill and decode.

It computes the same as models/transformer.py, with keys and values in pages. A token's result is bit-identical
whatever other tokens are in the call, however its sequence is split into calls, and for any page placement and number
of threads. The structures mirror those of matrix.h, elementwise.h, attention.h and decode.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..spec import ModelSpec
from .bindings import library
from .matmul import TYPES, MatrixStruct, SegmentStruct
from .packed import PackedMatrix, check_weight, rows_of

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


@dataclass(frozen=True)
class MatrixWeights:
    """A matrix (out, in), in blocks or in float32, and its bias (out,)."""

    weight: PackedMatrix | Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class NormWeights:
    """The weight and bias of a norm of either kind."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer. Norms that a spec does not have are None; gate rows come first in `up`."""

    qkv: MatrixWeights
    out: MatrixWeights
    up: MatrixWeights
    down: MatrixWeights
    attention_norm: NormWeights | None = None
    attention_post_norm: NormWeights | None = None
    mlp_norm: NormWeights | None = None
    mlp_post_norm: NormWeights | None = None
    query_norm: NormWeights | None = None
    key_norm: NormWeights | None = None
    sinks: Tensor | None = None  # (heads,): a logit per head that joins the softmax's denominator


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("rms", c_int64), ("eps", c_float))


class _Layer(Structure):
    _fields_ = (
        ("attention_norm", _Norm),
        ("attention_post_norm", _Norm),
        ("mlp_norm", _Norm),
        ("mlp_post_norm", _Norm),
        ("query_norm", _Norm),
        ("key_norm", _Norm),
        ("qkv", MatrixStruct),
        ("out", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
        ("sinks", c_void_p),
        ("window", c_int64),
        ("rope", c_int64),
    )


class _Model(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layer_count", "width", "heads", "kv_heads", "head_width", "mlp_width")),
        *((name, c_int64) for name in ("parallel", "gated", "activation", "full_qk_norm")),
        *((name, c_float) for name in ("scale", "softcap", "residual_scale")),
        ("layers", c_void_p),
    )


class _RopeTable(Structure):
    _fields_ = (("cosine", c_void_p), ("sine", c_void_p), ("width", c_int64), ("interleaved", c_int64))


class _Placement(Structure):
    _fields_ = (
        ("positions", c_void_p),
        ("sequences", c_void_p),
        ("page_tables", c_void_p),
        ("tokens", c_int64),
        ("table_width", c_int64),
        ("page_size", c_int64),
    )


class _State(Structure):
    _fields_ = (("at", _Placement), ("keys", c_void_p), ("values", c_void_p), ("tables", _RopeTable * 2))


RopeTables = tuple[Tensor, Tensor]  # cos and signed sin, (positions, rotary_width): see models/rotary.py


@dataclass(frozen=True)
class Placement:
    """Sequence, position and pages of the tokens of one call; contiguous arrays.

    positions, sequences: (tokens,) position in its sequence, and row of `page_tables`, of each token.
    page_tables: (sequences, pages) page `j` of a row holds positions from `j * page_size` on.
    """

    positions: NDArray[np.int64]
    sequences: NDArray[np.int64]
    page_tables: NDArray[np.int32]


class KVCache:
    """The pages of all layers, with shapes checked once. Keeps its tensors alive, at fixed addresses.

    `keys` and `values`: a tensor per layer, (pages, kv_heads, page_size, head_width). Raises ValueError for wrong
    shapes, or a page size that is not a multiple of eight.
    """

    def __init__(self, spec: ModelSpec, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if not len(keys) == len(values) == spec.layers:
            raise ValueError(f"keys of {len(keys)} and values of {len(values)} layers for a model of {spec.layers}")
        self.pages, _, self.page_size, _ = self.shape = (
            keys[0].shape[0], spec.kv_heads, keys[0].shape[-2], spec.head_width
        )  # fmt: skip
        if self.page_size < 8 or self.page_size % 8:
            raise ValueError(f"pages of {self.page_size} tokens: give a multiple of 8")
        for pages in (*keys, *values):
            check_weight(pages, *self.shape)
        self.keys, self.values = tuple(keys), tuple(values)
        pointers = c_void_p * spec.layers
        self.key_pointers = pointers(*(pages.data_ptr() for pages in keys))
        self.value_pointers = pointers(*(pages.data_ptr() for pages in values))


class TransformerProgram:
    """All layers of a model, with shapes checked once. Keeps its weights alive, at fixed addresses.

    `support.unsupported(spec)` names features of a model that it does not support.
    """

    def __init__(self, spec: ModelSpec, layers: Sequence[LayerWeights]) -> None:
        if len(layers) != spec.layers or spec.heads % spec.kv_heads:
            raise ValueError(f"{len(layers)} layers for a model of {spec.layers}, or heads that form no groups")
        self.spec, self.layers = spec, tuple(layers)
        self._layers = (_Layer * spec.layers)(*(_layer(spec, i, layer) for i, layer in enumerate(layers)))
        self._model = _Model(
            layer_count=spec.layers,
            width=spec.width,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_width=spec.head_width,
            mlp_width=spec.mlp_width,
            parallel=spec.parallel,
            gated=spec.mlp == "gated",
            activation=_ACTIVATIONS[spec.activation],
            full_qk_norm=spec.qk_norm == "full",
            scale=spec.attention_scale or spec.head_width**-0.5,
            softcap=spec.attention_softcap or 0.0,
            residual_scale=spec.residual_scale or 1.0,
            layers=addressof(self._layers),
        )

    def __reduce__(self) -> tuple[type[TransformerProgram], tuple[object, ...]]:
        return TransformerProgram, (self.spec, self.layers)  # a copy reads the copied weights

    def forward(
        self, x: Tensor, tables: tuple[RopeTables | None, RopeTables | None], pool: KVCache, placement: Placement
    ) -> Tensor:
        """The last layer's output, (tokens, width), for the embedded tokens `x` (tokens, width).

        Every token's key and value are stored in its page of `pool`; then it attends to positions up to its own, from
        earlier calls or this one. `tables` are the rope tables of layers without and with a window; None: no rope.
        Raises ValueError for mismatched arguments, before anything is written.
        """
        y = rows_of(x, self.spec.width).clone()
        if y.shape != (len(placement.positions), self.spec.width) or not len(y):
            raise ValueError(f"{tuple(x.shape)} does not fit {len(placement.positions)} tokens, at least one")
        if pool.shape[1::2] != (self.spec.kv_heads, self.spec.head_width) or len(pool.keys) != self.spec.layers:
            raise ValueError(f"a pool of {len(pool.keys)} layers and shape {pool.shape} belongs to another model")
        state = _State(at=_placement(placement, pool))
        state.keys, state.values = addressof(pool.key_pointers), addressof(pool.value_pointers)
        last = int(placement.positions.max())
        for index, table in enumerate(tables):
            if table is not None:
                state.tables[index] = _table(table, self.spec.head_width, last)
        if library().nw_decode(addressof(self._model), addressof(state), y.data_ptr()):
            raise MemoryError(f"not enough memory for a step of {len(y)} tokens")
        return y


def _placement(placement: Placement, pool: KVCache) -> _Placement:
    """Check that every page to be read or written is in the pool."""
    positions, sequences, tables = placement.positions, placement.sequences, placement.page_tables
    for array, dtype, dimensions in ((positions, np.int64, 1), (sequences, np.int64, 1), (tables, np.int32, 2)):
        if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
            raise ValueError(f"takes a contiguous {np.dtype(dtype)} array, not {array.dtype} {array.shape}")
    if len(positions) != len(sequences):
        raise ValueError(f"{len(positions)} positions for {len(sequences)} sequence numbers")
    rows, width = tables.shape
    if not 0 <= sequences.min() <= sequences.max() < rows:
        raise ValueError(f"a sequence number outside the {rows} rows of the page table")
    if not 0 <= positions.min() <= positions.max() < width * pool.page_size:
        raise ValueError(f"a position outside the {width} pages of {pool.page_size} tokens in the page table")
    pages = np.zeros(rows, np.int64)  # read or written by each sequence
    np.maximum.at(pages, sequences, positions // pool.page_size + 1)
    page_ids = tables[np.arange(width) < pages[:, None]]
    if not 0 <= page_ids.min() <= page_ids.max() < pool.pages:
        raise ValueError(f"a page outside the pool of {pool.pages}: {page_ids.min()} to {page_ids.max()}")
    return _Placement(
        positions.ctypes.data, sequences.ctypes.data, tables.ctypes.data, len(positions), width, pool.page_size
    )


def _matrix(matrix: MatrixWeights, rows: int, width: int) -> MatrixStruct:
    weight, bias = matrix.weight, _vector(matrix.bias, rows)
    if isinstance(weight, Tensor):
        check_weight(weight, rows, width)
        stored = SegmentStruct(TYPES["f32"], rows, weight.data_ptr())
    elif (weight.rows, weight.width) != (rows, width):
        raise ValueError(f"{weight} is not ({rows}, {width})")
    else:
        stored = SegmentStruct(TYPES[weight.kind], rows, weight.data.data_ptr())
    return MatrixStruct(rows, width, 1, (SegmentStruct * 1)(stored), bias)


def _norm(spec: ModelSpec, norm: NormWeights | None, width: int) -> _Norm:
    if norm is None:
        return _Norm(None, None)
    check_weight(norm.weight, width)
    return _Norm(norm.weight.data_ptr(), _vector(norm.bias, width), spec.norm == "rms", spec.norm_eps)


def _vector(vector: Tensor | None, width: int) -> int | None:
    if vector is None:
        return None
    check_weight(vector, width)
    return vector.data_ptr()


def _layer(spec: ModelSpec, index: int, layer: LayerWeights) -> _Layer:
    queries, keys, up_rows = spec.heads * spec.head_width, spec.kv_heads * spec.head_width, spec.mlp_width
    full, local = spec.qk_norm == "full", spec.window(index) > 0
    if (layer.sinks is None) == spec.attention_sinks:
        raise ValueError(f"layer {index} has attention sinks where the model has none, or the other way round")
    return _Layer(
        _norm(spec, layer.attention_norm, spec.width),
        _norm(spec, layer.attention_post_norm, spec.width),
        _norm(spec, layer.mlp_norm, spec.width),
        _norm(spec, layer.mlp_post_norm, spec.width),
        _norm(spec, layer.query_norm, queries if full else spec.head_width),
        _norm(spec, layer.key_norm, keys if full else spec.head_width),
        _matrix(layer.qkv, queries + 2 * keys, spec.width),
        _matrix(layer.out, spec.width, queries),
        _matrix(layer.up, up_rows * (2 if spec.mlp == "gated" else 1), spec.width),
        _matrix(layer.down, spec.width, spec.mlp_width),
        _vector(layer.sinks, spec.heads),
        spec.window(index),
        int(local) if spec.has_rope(index) else -1,
    )


def _table(tables: RopeTables, head_width: int, last: int) -> _RopeTable:
    """Check a rope table for positions up to `last`."""
    cosine, sine = tables
    positions, rotary = cosine.shape
    check_weight(cosine, positions, rotary)
    check_weight(sine, positions, rotary)
    if last >= positions or rotary > head_width or rotary % 2:
        raise ValueError(f"rotary tables {tuple(cosine.shape)} do not fit position {last} and width {head_width}")
    return _RopeTable(cosine.data_ptr(), sine.data_ptr(), rotary, 0)
