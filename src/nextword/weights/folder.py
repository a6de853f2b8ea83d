"""A Hugging Face folder as a source of weights: config.json, tokenizer, safetensors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..families import FileTensor, loadable_family, spec_from_config
from . import floats, mxfp4
from .json_file import read_json
from .mapping import Bytes
from .model_folder import CONFIG, weight_files
from .safetensors_file import SafetensorsFile
from .source import StoredRows, check_layers, check_tensors, check_unread, from_file, run_kind

if TYPE_CHECKING:
    from ..text import Tokenizer


class FolderSource:
    """A folder in transformers' format. Nothing in it is executed, and no pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / CONFIG)
        self.family = loadable_family(str(self.config.get("model_type", "")))
        self.spec = spec_from_config(self.config)
        self._where = _tensors(path)
        check_layers(path, self.spec, len(self._where))
        self.parameters = self.family.names.parameters(self.spec)
        self._prefix = self._find_prefix()
        check_tensors(self, len(self._where))
        check_unread(path, self._read_names(), self._where, "|".join(self.family.names.ignored) or "$")

    def _read_names(self) -> set[str]:
        """Names of the tensors to read, and of a head that duplicates the embedding."""
        untied = self.family.names.parameters(replace(self.spec, tied=False))
        names = {self._name(tensor.name) for parameter in untied for tensor in parameter.tensors}
        return names | {name + part for name in names for part in (mxfp4.BLOCKS, mxfp4.SCALES)}

    def _find_prefix(self) -> str:
        first, prefixes = self.parameters[0].tensors[0].name, self.family.names.prefixes
        return next((prefix for prefix in prefixes if prefix + first in self._where), prefixes[0])

    def _name(self, name: str) -> str:
        if not name.startswith("^"):
            return self._prefix + name
        plain = name[1:]
        nested = self._prefix.removesuffix("model.") + plain  # language_model.lm_head.weight
        return plain if plain in self._where or nested not in self._where else nested

    def kind(self, tensor: FileTensor) -> str:
        name = self._name(tensor.name)
        if name + mxfp4.BLOCKS in self._where:
            return "mxfp4"
        kind = self._where[name].tensors[name].kind
        if kind not in floats.FLOATS:
            known = ", ".join(floats.FLOATS)
            raise UsageError(f"{self.path}: tensor {name!r} is stored as {kind}; nextword reads {known}")
        return kind

    def shape(self, tensor: FileTensor) -> tuple[int, ...] | None:
        name = self._name(tensor.name)
        if (blocks := name + mxfp4.BLOCKS) in self._where:
            *shape, groups, _ = self._where[blocks].tensors[blocks].shape
            return (*shape, 32 * groups) if name + mxfp4.SCALES in self._where else None
        if name not in self._where:
            return None
        stored = self._where[name].tensors[name].shape
        return (*stored[:-2], stored[-1], stored[-2]) if tensor.transposed else stored

    def read(self, tensor: FileTensor) -> NDArray[np.float32]:
        name, kind = self._name(tensor.name), self.kind(tensor)
        if kind == "mxfp4":  # whose rows are never transposed
            return tensor.rows_from_file(mxfp4.dequantize(*self._mxfp4(name)))
        shape = self._where[name].tensors[name].shape
        return from_file(floats.decode(kind, self._where[name].raw(name)).reshape(shape), tensor)

    def mapped(self, tensor: FileTensor) -> StoredRows:
        name, kind = self._name(tensor.name), self.kind(tensor)
        if kind == "mxfp4":
            return StoredRows(kind, mxfp4.gguf_rows(*self._mxfp4(name)))
        file = self._where[name]
        stored = file.raw(name)
        if run_kind(kind) != kind:
            kind, stored = "f32", floats.decode(kind, stored).view(np.uint8)
        rows = math.prod(file.tensors[name].shape[:-1])
        return StoredRows(kind, stored.reshape(rows, -1))

    def _mxfp4(self, name: str) -> tuple[Bytes, Bytes]:
        """The blocks and scales of a matrix, in their shapes."""
        names = name + mxfp4.BLOCKS, name + mxfp4.SCALES
        blocks, scales = (self._where[part].raw(part).reshape(self._where[part].tensors[part].shape) for part in names)
        return blocks, scales

    def tokenizer(self) -> Tokenizer:
        from ..text import tokenizer_from_folder

        return tokenizer_from_folder(self.path)


def _tensors(path: Path) -> dict[str, SafetensorsFile]:
    """Every tensor of a model folder by its name, and the file it is in."""
    where: dict[str, SafetensorsFile] = {}
    for file in map(SafetensorsFile, weight_files(path)):
        twice = next((name for name in file.tensors if name in where), None)
        if twice is not None:
            raise UsageError(f"{file.path}: tensor {twice!r} is in another file of the model as well")
        where.update(dict.fromkeys(file.tensors, file))
    return where
