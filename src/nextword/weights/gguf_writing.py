"""Writes a model in memory as a GGUF file, in llama.cpp's conventions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..families import FAMILIES, GGUF, FileTensor
from ..families.gguf_metadata import gguf_metadata
from ..native.quantize import quantize
from ..spec import ModelSpec
from . import floats
from .conversion import Floats, ModelData, Progress, to_file
from .gguf_vocabulary import Vocabulary, vocabulary_of
from .model_folder import new_file
from .quantizing import MIXES, quantized_type
from .rope_factors import factor_metadata, factor_tensors

_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}  # llama_ftype
_QUANTIZATION_VERSION = 2
_FOLDER = "Write a Hugging Face folder instead: a name without .gguf"
_NOT_MULTIPLIED = ("position_embd.weight", "ffn_gate_inp.weight")  # kept in float32: added; selects the experts


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file, the parameter of ours it is part of, and its stored type."""

    tensor: FileTensor
    parameter: str
    type: str  # "f32", "q4_k", ...


def write_gguf(out: Path, model: ModelData, dtype: str, force: bool, progress: Progress) -> Path:
    """Write a transformer of a llama.cpp family, with its byte-level tokenizer, to `out`, atomically.

    `dtype` is that of the matrices, or one of MIXES, whose matrices are of several types; norms and biases are
    float32. Raises UsageError for a model or tokenizer that GGUF cannot express, or if
    `out` exists and `force` is not set; RunError if the file cannot be written.
    """
    gguf, metadata = _described(model.spec)
    vocabulary = vocabulary_of(model.tokenizer, model.spec.vocabulary)
    factors = factor_tensors(model.spec)
    tensors = list(_tensors(model.spec, gguf, factors, dtype))

    def values(stored: _Stored) -> Floats:
        ours = factors[stored.parameter] if stored.parameter in factors else model.arrays[stored.parameter]
        return np.ascontiguousarray(to_file(ours[stored.tensor.index], stored.tensor))

    with new_file(out, force) as part:
        _write(part, metadata | _types_metadata(dtype), vocabulary, tensors, values, progress)
    return out


def _described(spec: ModelSpec) -> tuple[GGUF, dict[str, Any]]:
    """The family's GGUF description, and the file's metadata."""
    if spec.kind != "transformer":
        raise UsageError(f"GGUF does not support a model of kind {spec.kind}. {_FOLDER}")
    described = gguf_metadata(spec)
    if described is None:
        known = ", ".join(dict.fromkeys(family.gguf.architecture for family in FAMILIES.values() if family.gguf))
        raise UsageError(f"this model's layout cannot be written as GGUF. Those that can: {known}. {_FOLDER}")
    gguf, metadata = described
    return gguf, metadata | factor_metadata(spec, gguf.architecture)


def _types_metadata(dtype: str) -> dict[str, Any]:
    if dtype not in MIXES:
        return {"general.file_type": _FILE_TYPES[dtype]}
    return {
        "general.file_type": MIXES[dtype].file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


def _tensors(spec: ModelSpec, gguf: GGUF, factors: Mapping[str, Floats], dtype: str) -> Iterator[_Stored]:
    """Every tensor with llama.cpp's names, row order and types."""
    for parameter in gguf.names.parameters(spec):
        for tensor in parameter.tensors:
            if tensor.is_vector or tensor.name.endswith(_NOT_MULTIPLIED):
                kind = "f32"
            elif dtype in MIXES:
                kind = quantized_type(MIXES[dtype], spec, parameter, tensor)
            else:
                kind = floats.KINDS[dtype]
            yield _Stored(tensor, parameter.name, kind)
    for name, values in factors.items():
        yield _Stored(FileTensor(name, values.shape, (slice(None),), is_vector=True), name, "f32")


def _write(
    path: Path,
    metadata: dict[str, Any],
    vocabulary: Vocabulary,
    tensors: list[_Stored],
    values: Callable[[_Stored], Floats],
    progress: Progress,
) -> None:
    """Write the header, then one tensor at a time."""
    import gguf

    class Writer(gguf.GGUFWriter):
        """Also writes an empty list of strings, which llama.cpp needs for a vocabulary without merges."""

        def _pack_val(self, val: Any, vtype: Any, *rest: Any, **options: Any) -> Any:
            if vtype == gguf.GGUFValueType.ARRAY and not val:
                return struct.pack("<IIQ", vtype, gguf.GGUFValueType.STRING, 0)
            return super()._pack_val(val, vtype, *rest, **options)

    writer = Writer(path, metadata.pop("general.architecture"))
    add: dict[type, Callable[..., None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)
    vocabulary.add_to(writer)
    for stored in tensors:
        shape, kind = stored.tensor.shape, gguf.GGMLQuantizationType[stored.type.upper()]
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(stored.tensor.name, shape, np.dtype(np.float32), size, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, stored in enumerate(tensors):
            writer.write_tensor_data(_encoded(values(stored), stored.type))
            progress((done + 1) / len(tensors))
    finally:
        writer.close()


def _encoded(values: Floats, kind: str) -> NDArray[Any]:
    """`values` (..., width) in a type of the file."""
    if kind in floats.KINDS.values():
        return floats.encode(values, next(name for name, stored in floats.KINDS.items() if stored == kind))
    return quantize(values.reshape(-1, values.shape[-1]), kind)
