"""A model's matrices and vectors, by the names of our parameters: from arrays in memory, or from a file as stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..families import FileTensor, Parameter
from ..families.names import Names
from ..native.matmul import Matrix, Segment
from ..native.quantize import convert_rows
from ..spec import ModelSpec
from ..weights.floats import KINDS
from ..weights.quantizing import MIXES, quantized_type
from ..weights.source import Source, run_kind

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "q8_0", "q4_k"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16", "float16", "q8_0", "q4_k")


class Weights(Protocol):
    """What a model is built from. Arrays stay valid as long as this object or a matrix lives."""

    spec: ModelSpec
    types: set[str]  # of the matrices given out
    mapped_bytes: int  # of them, in mapped files

    def matrix(self, weight: str, bias: str = "") -> Matrix:
        """A matrix (rows, width) and its bias, if the model has a parameter of that name."""

    def experts(self, weight: str, bias: str) -> list[Matrix]:
        """A matrix for each expert."""

    def vector(self, name: str) -> Floats | None:
        """A contiguous float32 vector; None if the model has none of that name."""

    def interleaved(self, layer: int) -> bool:
        """Whether the rows of a layer's queries and keys are in the order of rotary pairs."""


class ArrayWeights:
    """Float32 arrays, not copied. Raises ValueError for a missing one, or one of another shape or type."""

    def __init__(self, spec: ModelSpec, arrays: Mapping[str, Floats]) -> None:
        self.spec, self.arrays = spec, arrays
        self.types, self.mapped_bytes = {"f32"}, 0
        for parameter in Names({}).parameters(spec):
            array = arrays.get(parameter.name)
            wanted = array is not None and array.dtype == np.float32 and array.flags.c_contiguous
            if array is None or not wanted or array.shape != parameter.shape:
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise ValueError(f"{parameter.name} is {found}; it takes contiguous float32 {parameter.shape}")

    def matrix(self, weight: str, bias: str = "") -> Matrix:
        return Matrix.from_float32(self.arrays[weight], self.vector(bias))

    def experts(self, weight: str, bias: str) -> list[Matrix]:
        matrices, biases = self.arrays[weight], self.vector(bias)
        return [Matrix.from_float32(matrix, _row(biases, number)) for number, matrix in enumerate(matrices)]

    def vector(self, name: str) -> Floats | None:
        return self.arrays.get(name)

    def interleaved(self, layer: int) -> bool:
        return False


def _row(biases: Floats | None, number: int) -> Floats | None:
    return None if biases is None else biases[number]


class SourceWeights:
    """The matrices of a file or folder as they are stored there and mapped, or in another `dtype`.

    Only rows in another order and transposed matrices are copied; vectors become float32.
    """

    def __init__(self, source: Source, dtype: Dtype = "auto") -> None:
        self.source, self.spec, self.dtype = source, source.spec, dtype
        self._parameters = {parameter.name: parameter for parameter in source.parameters}
        self.types: set[str] = set()
        self.mapped_bytes = 0

    def matrix(self, weight: str, bias: str = "") -> Matrix:
        parameter = self._parameters[weight]
        in_pairs = self._in_pairs(parameter)
        segments = [self._segment(parameter, tensor, in_pairs) for tensor in parameter.tensors]
        return Matrix(parameter.shape[1], segments, self._vector(bias, in_pairs))

    def experts(self, weight: str, bias: str) -> list[Matrix]:
        parameter, biases = self._parameters[weight], self.vector(bias)
        segments: list[list[Segment]] = [[] for _ in range(parameter.shape[0])]
        for tensor in sorted(parameter.tensors, key=_first_row):
            stored = self._segment(parameter, tensor)
            if isinstance(tensor.index[0], int):
                segments[tensor.index[0]].append(stored)
                continue
            for own, data in zip(segments, np.split(stored.data, len(segments)), strict=True):
                own.append(Segment(stored.type, data))
        return [Matrix(parameter.shape[2], own, _row(biases, number)) for number, own in enumerate(segments)]

    def vector(self, name: str) -> Floats | None:
        return self._vector(name, False)

    def interleaved(self, layer: int) -> bool:
        return self._in_pairs(self._parameters[f"blocks.{layer}.attention.qkv.weight"])

    def _vector(self, name: str, in_pairs: bool) -> Floats | None:
        if name not in self._parameters:
            return None
        parameter = self._parameters[name]
        values = np.empty(parameter.shape, np.float32)
        for tensor in parameter.tensors:
            array = self.source.read(tensor)
            values[tensor.index] = tensor.rows_to_file(array) if in_pairs else array
        return values

    def _in_pairs(self, parameter: Parameter) -> bool:
        """Whether a layer's queries and keys can stay in the file's order, pairs of rotary positions side by side.

        Norms over heads, and a rope over part of a head, need ours.
        """
        if not parameter.name.endswith("attention.qkv.weight") or len(parameter.tensors) != 3:
            return False
        if self.spec.qk_norm != "none" or self.spec.rope.fraction != 1:
            return False
        return all(tensor.swapped is not None for tensor in parameter.tensors[:2])

    def _wanted(self, parameter: Parameter, tensor: FileTensor) -> str:
        """The type that a matrix is to have."""
        if self.dtype == "auto" or parameter.name.endswith(_AS_STORED):
            return run_kind(self.source.kind(tensor))
        mix = MIXES.get("q4_k_m" if self.dtype == "q4_k" else self.dtype)
        return quantized_type(mix, self.spec, parameter, tensor) if mix else KINDS[self.dtype]

    def _segment(self, parameter: Parameter, tensor: FileTensor, in_pairs: bool = False) -> Segment:
        stored, kind = self.source.mapped(tensor), self._wanted(parameter, tensor)
        data = _transposed(stored.data, tensor) if tensor.transposed else stored.data
        if kind != stored.type:
            data = convert_rows(data, stored.type, kind, tensor.shape[-1])
        if tensor.swapped is not None and not in_pairs:
            data = tensor.rows_from_file(data.reshape(*tensor.shape[:-1], -1)).reshape(data.shape)
        self.types.add(kind)
        self.mapped_bytes += 0 if data.flags.writeable else data.nbytes
        return Segment(kind, data)


_AS_STORED = ("router.weight", "positions.weight")  # decides which experts run; is added


def _first_row(tensor: FileTensor) -> int:
    rows = tensor.index[1]
    assert isinstance(rows, slice)
    return int(rows.start)


def _transposed(data: Bytes, tensor: FileTensor) -> Bytes:
    """Rows (out, bytes) of matrices that are stored as floats (in, out), one or one per expert."""
    *experts, out, width = tensor.shape
    size = data.shape[1] // out
    numbers = data.reshape(*experts, width, out, size).swapaxes(-2, -3)
    return np.ascontiguousarray(numbers).reshape(-1, width * size)
