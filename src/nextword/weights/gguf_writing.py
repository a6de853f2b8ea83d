"""A model in memory → a GGUF file, in llama.cpp's conventions."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import UsageError
from ..models import Model
from ..plan.configs import spec_from_gguf_metadata
from ..spec import ModelSpec
from ..text import Tokenizer
from .conversion import as_stored
from .families import Piece
from .families import gguf as names
from .gguf_vocabulary import Vocabulary, vocabulary_of
from .model_folder import new_file

DTYPES = ("float32", "float16", "bfloat16", "q8_0")
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}  # llama_ftype
_BLOCK = 32  # numbers that share a scale in q8_0
_QUANTIZATION_VERSION = 2
_FOLDER = "Write a Hugging Face folder instead: a name without .gguf"


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file: the piece it is, the rows of our parameter it comes from, its type there."""

    piece: Piece
    parameter: Tensor
    row: int
    type: Any  # gguf.GGMLQuantizationType

    def values(self) -> np.ndarray:
        rows = self.parameter[self.row : self.row + self.piece.shape[0]].detach()
        return as_stored(rows.to(device="cpu", dtype=torch.float32), self.piece).contiguous().numpy()


def write_gguf(
    out: Path | str, model: Model, tokenizer: Tokenizer, dtype: str = "float32", force: bool = False
) -> Path:
    """Write a Llama, Qwen2, Qwen3 or GPT-2 layout and its byte-level tokenizer as `out`, whole or not at all.

    `dtype` is of the matrices (float32, float16, bfloat16, q8_0; rows that no q8_0 block divides are float16); norms
    and biases stay float32. Raises UsageError for a model or tokenizer that the file could not say all of, or where
    `out` exists and `force` is not set; RunError where the file cannot be written.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} cannot be written as GGUF. Known: {', '.join(DTYPES)}")
    metadata = _metadata(model.spec)
    vocabulary = vocabulary_of(tokenizer, model.spec.vocabulary)
    tensors = list(_tensors(model, metadata["general.architecture"], dtype))
    with new_file(out, force) as part:
        _write(part, metadata | {"general.file_type": _FILE_TYPES[dtype]}, vocabulary, tensors)
    return out


def _metadata(spec: ModelSpec) -> dict[str, Any]:
    """What the file says of the model: those keys of the first architecture that read back as `spec`, all of it."""
    if spec.kind != "transformer":
        raise UsageError(f"GGUF has no place for a model of kind {spec.kind}. {_FOLDER}")
    wanted = spec if any(spec.windows) else replace(spec, windows=())
    for architecture, describe in _ARCHITECTURES.items():
        metadata = {"general.architecture": architecture}
        metadata |= {f"{architecture}.{key}": value for key, value in describe(spec).items()}
        try:
            read = spec_from_gguf_metadata(metadata, tied=spec.tied)
        except UsageError:  # an odd shape for this family
            continue
        if read == wanted:
            return metadata
    layouts = ", ".join(_ARCHITECTURES)
    raise UsageError(f"this model's layout is none that nextword writes as GGUF ({layouts}). {_FOLDER}")


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocabulary,
        "context_length": spec.context,
        "embedding_length": spec.width,
        "block_count": spec.layers,
        "feed_forward_length": spec.mlp_width,
        "attention.head_count": spec.heads,
    }


def _llama(spec: ModelSpec) -> dict[str, Any]:
    return _sizes(spec) | {
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_width,
        "attention.value_length": spec.head_width,
        "attention.layer_norm_rms_epsilon": float(spec.norm_eps),
        "rope.dimension_count": spec.head_width,
        "rope.freq_base": float(spec.rope.theta),
    }


def _gpt2(spec: ModelSpec) -> dict[str, Any]:
    return _sizes(spec) | {"attention.layer_norm_epsilon": float(spec.norm_eps)}


_ARCHITECTURES = {"llama": _llama, "qwen2": _llama, "qwen3": _llama, "gpt2": _gpt2}


def _tensors(model: Model, architecture: str, dtype: str) -> Iterator[_Stored]:
    """Every tensor as llama.cpp names, orders and stores it."""
    from gguf import GGMLQuantizationType as Type

    wanted = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16, "q8_0": Type.Q8_0}[dtype]
    parameters = dict(model.named_parameters())
    for entry in names.entries(model.spec, architecture):
        if entry.ours not in parameters:
            raise UsageError("the model holds packed matrices, whose numbers are not at hand. Load it as float32")
        row = 0
        for piece in entry.pieces:
            kind = wanted
            if len(piece.shape) < 2 or piece.name == "position_embd.weight":  # added, not multiplied with
                kind = Type.F32
            elif kind == Type.Q8_0 and piece.shape[1] % _BLOCK:
                kind = Type.F16
            yield _Stored(piece, parameters[entry.ours], row, kind)
            row += piece.shape[0]


def _write(path: Path, metadata: dict[str, Any], vocabulary: Vocabulary, tensors: list[_Stored]) -> None:
    """Head first, then one tensor after the other, so that one alone is in memory besides the model."""
    import gguf

    class Writer(gguf.GGUFWriter):
        """Takes an empty list of strings too, which llama.cpp wants as the merges of a vocabulary without any."""

        def _pack_val(self, val: Any, vtype: Any, *rest: Any, **options: Any) -> Any:
            if vtype == gguf.GGUFValueType.ARRAY and not val:
                return struct.pack("<IIQ", vtype, gguf.GGUFValueType.STRING, 0)
            return super()._pack_val(val, vtype, *rest, **options)

    writer = Writer(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    if any(each.type == gguf.GGMLQuantizationType.Q8_0 for each in tensors):
        writer.add_quantization_version(_QUANTIZATION_VERSION)
    vocabulary.add_to(writer)
    for each in tensors:
        size = math.prod(gguf.quant_shape_to_byte_shape(each.piece.shape, each.type))
        writer.add_tensor_info(each.piece.name, each.piece.shape, np.dtype(np.float32), size, each.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in tensors:
            writer.write_tensor_data(gguf.quants.quantize(each.values(), each.type))
    finally:
        writer.close()
