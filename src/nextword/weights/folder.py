"""A Hugging Face folder as a source of weights: config.json, tokenizer, safetensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..base import UsageError, open_regular
from ..families import FileTensor, loadable_family, spec_from_config
from . import mxfp4
from .json_file import read_json
from .model_folder import CONFIG, weight_files
from .source import check_layers, check_tensors, check_unread, from_file

if TYPE_CHECKING:
    from safetensors import safe_open

    from ..text import Tokenizer

_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}


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
        kind = self._where[name].get_slice(name).get_dtype()
        if kind not in _KINDS:
            raise UsageError(f"{self.path}: tensor {name!r} is stored as {kind}; nextword reads {', '.join(_KINDS)}")
        return _KINDS[kind]

    def shape(self, tensor: FileTensor) -> tuple[int, ...] | None:
        name = self._name(tensor.name)
        if (blocks := name + mxfp4.BLOCKS) in self._where:
            *shape, groups, _ = self._where[blocks].get_slice(blocks).get_shape()
            return (*shape, 32 * groups) if name + mxfp4.SCALES in self._where else None
        if name not in self._where:
            return None
        shape = tuple(self._where[name].get_slice(name).get_shape())
        return (*shape[:-2], shape[-1], shape[-2]) if tensor.transposed else shape

    def read(self, tensor: FileTensor) -> Tensor:
        name = self._name(tensor.name)
        if self.kind(tensor) == "mxfp4":  # whose rows are never transposed
            blocks, scales = (self._where[name + part].get_tensor(name + part) for part in (mxfp4.BLOCKS, mxfp4.SCALES))
            return tensor.rows_from_file(mxfp4.dequantize(blocks, scales))
        return from_file(self._where[name].get_tensor(name), tensor)

    def blocks(self, tensor: FileTensor) -> np.ndarray:
        raise UsageError(f"{self.path}: safetensors hold no quantized blocks")

    def tokenizer(self) -> Tokenizer:
        from ..text import tokenizer_from_folder

        return tokenizer_from_folder(self.path)


def _tensors(path: Path) -> dict[str, safe_open]:
    """Every tensor of a model folder by its name, and the file it is in."""
    where: dict[str, safe_open] = {}
    for file in weight_files(path):
        opened = _open(file)
        names = opened.keys()
        twice = next((name for name in names if name in where), None)
        if twice is not None:
            raise UsageError(f"{file}: tensor {twice!r} is in another file of the model as well")
        where.update(dict.fromkeys(names, opened))
    return where


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path).close()
        return safe_open(path, framework="pt", device="cpu")
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: named in the index but missing; the download is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: incomplete or damaged safetensors file ({error})") from None
