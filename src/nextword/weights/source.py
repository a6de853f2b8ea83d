"""The loader's interface to files of weights, and its GGUF implementation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..base import UsageError
from ..families import Family, FileTensor, Parameter
from ..families.gguf_metadata import family_of_gguf, spec_from_gguf_metadata
from ..native.matmul import PackedMatrix, QuantType
from ..spec import ModelSpec
from . import rope_factors
from .gguf import GGUFFile

if TYPE_CHECKING:
    from ..text import Tokenizer

# GGUF block types supported by the compiled kernels
_NATIVE: dict[str, QuantType] = {"q4_0": "q4_0", "q4_1": "q4_1", "q8_0": "q8_0"}
_FLOAT_KINDS = ("f32", "f16", "bf16", "f64")
# derived from the metadata: old converters stored each layer's plain rotary frequencies
_DERIVED = r"blk\.\d+\.attn_rot_embd(\.weight)?"


class Source(Protocol):
    """Weights in a file or a folder: their spec, and reading each tensor."""

    path: Path
    spec: ModelSpec
    family: Family
    parameters: list[Parameter]
    config: dict[str, Any]  # config.json, or the metadata of a GGUF

    def kind(self, tensor: FileTensor) -> str:
        """The tensor's stored type: "f32", "bf16", "q4_1", ..."""

    def shape(self, tensor: FileTensor) -> tuple[int, ...] | None:
        """Its shape in our layout, or None if the file has no such tensor."""

    def read(self, tensor: FileTensor) -> Tensor:
        """The tensor as floats in our layout and row order."""

    def blocks(self, tensor: FileTensor) -> np.ndarray:
        """The tensor's quantized blocks, uint8 (rows, bytes per row), in our row order."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored with the weights."""


def is_quantized(kind: str) -> bool:
    """Whether a stored kind holds blocks rather than floating-point numbers."""
    return kind not in _FLOAT_KINDS


def native_kind(kind: str) -> QuantType | None:
    """The kernels' name of a stored kind, or None if unsupported."""
    return _NATIVE.get(kind)


def tensors_of(source: Source) -> list[FileTensor]:
    """Every tensor to read."""
    return [tensor for parameter in source.parameters for tensor in parameter.tensors]


def read_parameter(
    source: Source, parameter: Parameter, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> Tensor:
    """One of our parameters, assembled from its tensors in the file."""
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    for tensor in parameter.tensors:
        values[tensor.index] = source.read(tensor)
    return values


def check_tensors(source: Source, names_in_file: int) -> None:
    """Compare every tensor's name and shape with the spec, before reading anything."""
    tensors = tensors_of(source)
    shapes = {tensor.name: source.shape(tensor) for tensor in tensors}
    missing = [tensor.name for tensor in tensors if shapes[tensor.name] is None]
    if missing:
        raise UsageError(
            f"{source.path}: {_some(missing, len(tensors))} missing ({names_in_file} tensors present)."
            " The download may be incomplete, or the config may belong to another model"
        )
    wrong = [tensor for tensor in tensors if shapes[tensor.name] != tensor.shape]
    if wrong:
        first = wrong[0]
        raise UsageError(
            f"{source.path}: {_some([tensor.name for tensor in wrong], len(tensors))} of another shape than its"
            f" configuration says: {first.name} is {shapes[first.name]}, not {first.shape}."
            " The config may belong to another model"
        )


def check_unread(path: Path, read: Iterable[str], names: Iterable[str], ignored: str, hint: str = "") -> None:
    """Raise UsageError for tensors that would be left unread: the model would be a different one without them.

    `ignored` is a regular expression of redundant tensors.
    """
    known, present = set(read), list(names)
    unread = [name for name in present if name not in known and not re.fullmatch(ignored, name)]
    if unread:
        raise UsageError(
            f"{path}: {_some(unread, len(present))} unused: its configuration does not mention them."
            f" The model would be a different one without them{hint}"
        )


def _some(names: list[str], count: int) -> str:
    """As "3 of 290 tensors ('a', 'b', 'c') are", with the first few names."""
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of {count} tensors ({shown}) {'is' if len(names) == 1 else 'are'}"


def check_layers(path: Path, spec: ModelSpec, names_in_file: int) -> None:
    """Reject a layer count that exceeds the file's tensors, before any loop runs over layers."""
    if spec.layers > names_in_file:
        raise UsageError(f"{path}: its configuration says {spec.layers} layers, but it holds {names_in_file} tensors")


def from_file(values: Tensor, tensor: FileTensor) -> Tensor:
    """A stored tensor in our layout and row order, with the offset added."""
    values = tensor.rows_from_file(values.mT if tensor.transposed else values)
    return values.float() + tensor.offset if tensor.offset else values


class GGUFSource:
    """A GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GGUFFile.open(path)
        self.config = self.file.metadata
        self.family, gguf = family_of_gguf(self.config, str(path))
        spec = spec_from_gguf_metadata(self.config, "output.weight" not in self.file.tensors, str(path))
        check_layers(path, spec, len(self.file.tensors))
        self.parameters = gguf.names.parameters(spec)
        check_tensors(self, len(self.file.tensors))
        read = {tensor.name for tensor in tensors_of(self)} | set(rope_factors.NAMES)
        check_unread(path, read, self.file.tensors, _DERIVED, "; use the model's safetensors folder")
        self.spec = rope_factors.stretched(spec, self.file)

    def kind(self, tensor: FileTensor) -> str:
        return self.file.tensors[tensor.name].kind.lower()

    def shape(self, tensor: FileTensor) -> tuple[int, ...] | None:
        info = self.file.tensors.get(tensor.name)
        return tuple(info.shape) if info else None

    def read(self, tensor: FileTensor) -> Tensor:
        kind = native_kind(self.kind(tensor))
        if kind is not None and len(tensor.shape) == 2 and native.available():
            return PackedMatrix.pack(kind, self.blocks(tensor), tensor.shape[1]).dequantize()
        return from_file(torch.from_numpy(self.file.float32(tensor.name)), tensor)

    def blocks(self, tensor: FileTensor) -> np.ndarray:
        return tensor.rows_from_file(self.file.raw(tensor.name))

    def tokenizer(self) -> Tokenizer:
        from ..text import tokenizer_from_gguf

        return tokenizer_from_gguf(self.config, self.path)
