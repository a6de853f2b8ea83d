"""The loader's interface to files of weights, and its GGUF implementation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..families import Family, FileTensor, Parameter
from ..families.gguf_metadata import family_of_gguf, spec_from_gguf_metadata
from ..native.matmul import TYPES
from ..spec import ModelSpec
from . import rope_factors
from .gguf import GGUFFile

if TYPE_CHECKING:
    from ..text import Tokenizer

# types that the kernels do not read, and those that they become
CONVERTED = {"f64": "f32"} | dict.fromkeys(
    ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "nvfp4"), "q8_0"
)
# derived from the metadata: old converters stored each layer's plain rotary frequencies
_DERIVED = r"blk\.\d+\.attn_rot_embd(\.weight)?"


@dataclass(frozen=True)
class StoredRows:
    """Rows of a matrix in one of the kernels' types: `data` is uint8 (rows, bytes per row), not to be written to."""

    type: str
    data: NDArray[np.uint8]


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

    def read(self, tensor: FileTensor) -> NDArray[np.float32]:
        """The tensor in our layout and row order, with its offset, a copy."""

    def mapped(self, tensor: FileTensor) -> StoredRows:
        """The tensor as it lies in the file, in the file's row order: not transposed, without its offset.

        A view of the mapped file, unless its type is converted (see `run_kind`) or spread over two tensors.
        """

    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored with the weights."""


def run_kind(kind: str) -> str:
    """The type in which a stored kind is multiplied: its own, if the kernels read it."""
    return CONVERTED.get(kind, kind)


def tensors_of(source: Source) -> list[FileTensor]:
    """Every tensor to read."""
    return [tensor for parameter in source.parameters for tensor in parameter.tensors]


def read_parameter(source: Source, parameter: Parameter) -> NDArray[np.float32]:
    """One of our parameters, assembled from its tensors in the file."""
    if len(parameter.tensors) == 1:
        return source.read(parameter.tensors[0]).reshape(parameter.shape)
    values = np.empty(parameter.shape, np.float32)
    for tensor in parameter.tensors:
        values[tensor.index] = source.read(tensor)
    return values


class SourceArrays(Mapping[str, NDArray[np.float32]]):
    """The parameters of a source by our names, each read when it is asked for; the last one is kept."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parameters = {parameter.name: parameter for parameter in source.parameters}
        self._last: tuple[str, NDArray[np.float32]] | None = None

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if self._last is None or self._last[0] != name:
            self._last = None  # so that only one is in memory
            self._last = name, read_parameter(self._source, self._parameters[name])
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


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


def from_file(values: NDArray[np.float32], tensor: FileTensor) -> NDArray[np.float32]:
    """A stored tensor in our layout and row order, with the offset added."""
    values = tensor.rows_from_file(values.swapaxes(-1, -2) if tensor.transposed else values)
    return values + np.float32(tensor.offset) if tensor.offset else values


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
        self._check_types()
        check_unread(path, read, self.file.tensors, _DERIVED, "; use the model's safetensors folder")
        self.spec = rope_factors.stretched(spec, self.file)

    def _check_types(self) -> None:
        for tensor in tensors_of(self):
            kind = self.kind(tensor)
            if kind not in TYPES and kind not in CONVERTED:
                raise UsageError(
                    f"{self.path}: tensor {tensor.name!r} is stored as {kind}, which nextword cannot read."
                    " Use the model in another type, such as q4_k"
                )

    def kind(self, tensor: FileTensor) -> str:
        return self.file.tensors[tensor.name].kind.lower()

    def shape(self, tensor: FileTensor) -> tuple[int, ...] | None:
        info = self.file.tensors.get(tensor.name)
        return tuple(info.shape) if info else None

    def read(self, tensor: FileTensor) -> NDArray[np.float32]:
        return from_file(self.file.float32(tensor.name), tensor)

    def mapped(self, tensor: FileTensor) -> StoredRows:
        kind = self.kind(tensor)
        if kind in TYPES:
            return StoredRows(kind, self.file.raw(tensor.name))
        return StoredRows(run_kind(kind), self.file.converted(tensor.name, run_kind(kind)))

    def tokenizer(self) -> Tokenizer:
        from ..text import tokenizer_from_gguf

        return tokenizer_from_gguf(self.config, self.path)
