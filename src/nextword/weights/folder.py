"""A Hugging Face folder: config.json, tokenizer files, and safetensors in one file or many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..base import UsageError
from .families import Piece, family
from .json_file import read_json
from .source import arrange, check_entries, check_layers

if TYPE_CHECKING:
    from safetensors import safe_open

    from ..text import Tokenizer

_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}


class FolderSource:
    """A folder as transformers writes it. Nothing in it is executed, and no pickle is opened."""

    def __init__(self, path: Path) -> None:
        from ..plan.configs import spec_from_config

        self.path = path
        self.config = read_json(path / "config.json")
        self.family = family(str(self.config.get("model_type", "")))
        self.spec = spec_from_config(self.config)
        self._files = _open_all(path)
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        check_layers(path, self.spec, len(self._where))
        self.entries = self.family.entries(self.spec)
        self._prefix = self._find_prefix()
        check_entries(self, len(self._where))

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


def _open_all(path: Path) -> list[safe_open]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UsageError(f"{index}: {name!r} points outside the folder")
    else:
        names = sorted(file.name for file in path.glob("*.safetensors"))
    if not names:
        raise UsageError(
            f"{path}: no .safetensors file there (pickle files are never read). Convert the model to safetensors"
        )
    return [_open(path / name) for name in names]


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise UsageError(f"{path}: named in the index but not there; the download is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: not a whole safetensors file ({error})") from None
