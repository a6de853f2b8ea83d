"""One new token in each row through all layers of a transformer, in one call of the compiled kernels.

It computes what models/transformer.py says, layer by layer; what it saves is everything between the products. The
structures mirror those of matrix.h, vectors.h and step.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int64, c_void_p
from dataclasses import dataclass

from torch import Tensor

from ..spec import ModelSpec
from .library import loaded
from .operations import check_weight, rows_of
from .packed import PackedMatrix

_FUNCTIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


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
    """What one layer reads. Norms that a spec does not have are None; gate rows come first in `up`."""

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


class _Matrix(Structure):
    _fields_ = (
        ("kind", c_int64),
        ("rows", c_int64),
        ("width", c_int64),
        ("precise", c_int64),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    _fields_ = (
        ("attention_norm", _Norm),
        ("attention_post_norm", _Norm),
        ("mlp_norm", _Norm),
        ("mlp_post_norm", _Norm),
        ("query_norm", _Norm),
        ("key_norm", _Norm),
        ("qkv", _Matrix),
        ("out", _Matrix),
        ("up", _Matrix),
        ("down", _Matrix),
        ("window", c_int64),
        ("local", c_int64),
    )


class _Model(Structure):
    _fields_ = (
        ("layers", c_int64),
        ("width", c_int64),
        ("heads", c_int64),
        ("kv", c_int64),
        ("head_width", c_int64),
        ("mlp_width", c_int64),
        ("rms", c_int64),
        ("parallel", c_int64),
        ("gated", c_int64),
        ("function", c_int64),
        ("whole_qk_norm", c_int64),
        ("eps", c_float),
        ("scale", c_float),
        ("softcap", c_float),
        ("each", c_void_p),
    )


class _Table(Structure):
    _fields_ = (("cosine", c_void_p), ("sine", c_void_p), ("rotary", c_int64))


class _State(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("lengths", c_void_p),
        ("batch", c_int64),
        ("capacity", c_int64),
        ("tables", _Table * 2),
    )


Tables = tuple[Tensor, Tensor]  # cos and signed sin, (positions, rotary_width): see models/rotary.py


class Step:
    """All layers of a model, every shape checked once. Keeps the weights it was given alive, at their addresses."""

    def __init__(self, spec: ModelSpec, layers: Sequence[LayerWeights]) -> None:
        if len(layers) != spec.layers or spec.heads % spec.kv_heads:
            raise ValueError(f"{len(layers)} layers for a model of {spec.layers}, or heads that form no groups")
        self.spec, self.layers = spec, tuple(layers)
        self._each = (_Layer * spec.layers)(*(_layer(spec, i, layer) for i, layer in enumerate(layers)))
        self._model = _Model(
            layers=spec.layers,
            width=spec.width,
            heads=spec.heads,
            kv=spec.kv_heads,
            head_width=spec.head_width,
            mlp_width=spec.mlp_width,
            rms=spec.norm == "rms",
            parallel=spec.parallel,
            gated=spec.mlp == "gated",
            function=_FUNCTIONS[spec.activation],
            whole_qk_norm=spec.qk_norm == "full",
            eps=spec.norm_eps,
            scale=spec.attention_scale or spec.head_width**-0.5,
            softcap=spec.attention_softcap or 0.0,
            each=addressof(self._each),
        )

    def __reduce__(self) -> tuple[type[Step], tuple[object, ...]]:
        return Step, (self.spec, self.layers)  # a copy reads the copied weights

    def run(
        self,
        x: Tensor,
        tables: tuple[Tables | None, Tables | None],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        lengths: Sequence[int],
    ) -> Tensor:
        """What the last layer leaves, (batch, width), for the embedded tokens `x` (batch, width).

        A row's token stands at position `lengths[row]`, where its key and value are stored in every layer's
        `keys` and `values` (batch, kv_heads, capacity, head_width). `tables` turn layers without and
        with a window; None turns nothing. Raises ValueError for shapes that do not fit.
        """
        spec, batch, capacity = self.spec, len(lengths), keys[0].shape[2]
        y = rows_of(x, spec.width).clone()
        shape = (batch, spec.kv_heads, capacity, spec.head_width)
        if y.shape != (batch, spec.width) or not len(keys) == len(values) == spec.layers:
            raise ValueError(f"{tuple(x.shape)} does not fit {batch} rows, or the cache has {len(keys)} layers")
        for stored in (*keys, *values):
            check_weight(stored, *shape)
        if not 0 <= min(lengths) <= max(lengths) < capacity:
            raise ValueError(f"lengths {list(lengths)} leave no room in a cache of {capacity}")
        state = _State(batch=batch, capacity=capacity)
        for place, table in enumerate(tables):
            if table is not None:
                state.tables[place] = _table(table, spec.head_width, max(lengths))
        pointers = c_void_p * spec.layers
        held = (
            pointers(*(stored.data_ptr() for stored in keys)),
            pointers(*(stored.data_ptr() for stored in values)),
            (c_int64 * batch)(*lengths),
        )
        state.keys, state.values, state.lengths = (addressof(part) for part in held)
        if loaded().nw_step(addressof(self._model), addressof(state), y.data_ptr()):
            raise MemoryError(f"no memory for a step of {batch} rows")
        return y


def _matrix(matrix: MatrixWeights, rows: int, width: int) -> _Matrix:
    weight, bias = matrix.weight, matrix.bias
    if bias is not None:
        check_weight(bias, rows)
    bias_address = None if bias is None else bias.data_ptr()
    if isinstance(weight, Tensor):
        check_weight(weight, rows, width)
        return _Matrix(0, rows, width, 0, weight.data_ptr(), bias_address)
    if (weight.rows, weight.width) != (rows, width):
        raise ValueError(f"{weight} is not ({rows}, {width})")
    return _Matrix(weight.code, rows, width, weight.precise, weight.data.data_ptr(), bias_address)


def _norm(norm: NormWeights | None, width: int) -> _Norm:
    if norm is None:
        return _Norm(None, None)
    check_weight(norm.weight, width)
    if norm.bias is not None:
        check_weight(norm.bias, width)
    return _Norm(norm.weight.data_ptr(), None if norm.bias is None else norm.bias.data_ptr())


def _layer(spec: ModelSpec, index: int, layer: LayerWeights) -> _Layer:
    mixed, keys, inner = spec.heads * spec.head_width, spec.kv_heads * spec.head_width, spec.mlp_width
    whole = spec.qk_norm == "full"
    return _Layer(
        _norm(layer.attention_norm, spec.width),
        _norm(layer.attention_post_norm, spec.width),
        _norm(layer.mlp_norm, spec.width),
        _norm(layer.mlp_post_norm, spec.width),
        _norm(layer.query_norm, mixed if whole else spec.head_width),
        _norm(layer.key_norm, keys if whole else spec.head_width),
        _matrix(layer.qkv, mixed + 2 * keys, spec.width),
        _matrix(layer.out, spec.width, mixed),
        _matrix(layer.up, inner * (2 if spec.mlp == "gated" else 1), spec.width),
        _matrix(layer.down, spec.width, inner),
        spec.window(index),
        int(spec.window(index) > 0),
    )


def _table(tables: Tables, head_width: int, last: int) -> _Table:
    """Checked for positions up to `last`."""
    cosine, sine = tables
    positions, rotary = cosine.shape
    check_weight(cosine, positions, rotary)
    check_weight(sine, positions, rotary)
    if last >= positions or rotary > head_width or rotary % 2:
        raise ValueError(f"rotary tables {tuple(cosine.shape)} do not fit position {last} and width {head_width}")
    return _Table(cosine.data_ptr(), sine.data_ptr(), rotary)
