"""A Hugging Face folder: config.json, tokenizer files, and safetensors in one file or many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..base import UsageError, open_regular
from .families import Piece, family
from .json_file import read_json
from .model_folder import CONFIG, weight_files
from .source import arrange, check_entries, check_layers, check_unread

if TYPE_CHECKING:
    from safetensors import safe_open

    from ..text import Tokenizer

_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}


class FolderSource:
    """A folder as transformers writes it. Nothing in it is executed, and no pickle is opened."""

    def __init__(self, path: Path) -> None:
        from ..plan.configs import spec_from_config

        self.path = path
        self.config = read_json(path / CONFIG)
        self.family = family(str(self.config.get("model_type", "")))
        self.spec = spec_from_config(self.config)
        self._where = _tensors(path)
        check_layers(path, self.spec, len(self._where))
        self.entries = self.family.entries(self.spec)
        self._prefix = self._find_prefix()
        check_entries(self, len(self._where))
        check_unread(path, self._read_names(), self._where, "|".join(self.family.ignored) or "$")

    def _read_names(self) -> set[str]:
        """Names of the tensors that are read, and that of a head which is the embedding again."""
        whole = self.family.entries(replace(self.spec, tied=False))
        head = [entry for entry in whole if entry.ours == "head.weight"]
        return {self._name(piece) for entry in (*self.entries, *head) for piece in entry.pieces}

    def _find_prefix(self) -> str:
        first = self.entries[0].pieces[0].name
        found = [prefix for prefix in self.family.prefixes if prefix + first in self._where]
        return found[0] if found else self.family.prefixes[0]

    def _name(self, piece: Piece) -> str:
        if not piece.name.startswith("^"):
            return self._prefix + piece.name
        plain = piece.name[1:]
        nested = self._prefix.removesuffix("model.") + plain  # language_model.lm_head.weight
        return plain if plain in self._where or nested not in self._where else nested

    def kind(self, piece: Piece) -> str:
        name = self._name(piece)
        kind = self._where[name].get_slice(name).get_dtype()
        if kind not in _KINDS:
            raise UsageError(f"{self.path}: tensor {name!r} is stored as {kind}; nextword reads {', '.join(_KINDS)}")
        return _KINDS[kind]

    def shape(self, piece: Piece) -> tuple[int, ...] | None:
        name = self._name(piece)
        if name not in self._where:
            return None
        shape = tuple(self._where[name].get_slice(name).get_shape())
        return shape[::-1] if piece.transposed else shape

    def read(self, piece: Piece) -> Tensor:
        name = self._name(piece)
        self.kind(piece)
        tensor: Tensor = self._where[name].get_tensor(name)
        return arrange(tensor, piece)

    def blocks(self, piece: Piece) -> np.ndarray:
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
            raise UsageError(f"{file}: tensor {twice!r} is in another file of the model too")
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
        raise UsageError(f"{path}: named in the index but not there; the download is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a whole safetensors file ({error})") from None
