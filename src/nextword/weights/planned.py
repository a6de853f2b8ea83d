"""The model to plan for, by name: one of the catalogue, in the cache or not, or a well-known one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..families import spec_from_config
from ..families.gguf_metadata import spec_from_gguf_metadata
from ..plan.questions import PlannedModel, known_model, published_model
from ..plan.serving import published_bytes
from .catalogue import cache_folder, cached_file, find, is_cached
from .json_file import read_json


def model_by_name(name: str) -> PlannedModel | None:
    """A model of the catalogue, as its file stores it if it is in the cache, or a well-known model; None for others."""
    entry = find(name)
    if entry is None:
        return known_model(name)
    file = cached_file(entry, cache_folder()) if is_cached(entry, cache_folder()) else None
    return PlannedModel(name, entry.spec) if file is None else model_of_gguf(name, file)


def model_at(name: str, path: Path) -> PlannedModel:
    """A model in a .gguf file, or in a Hugging Face folder with or without its weights."""
    if not path.is_dir():
        return model_of_gguf(name, path)
    return model_of_config(name, path / "config.json", read_json(path / "config.json"))


def model_of_config(name: str, path: Path, config: Mapping[str, Any]) -> PlannedModel:
    """A model by the content of its config.json at `path`, with the size of the weights beside it, if any are."""
    spec = spec_from_config(config, str(path))
    stored = sum(file.stat().st_size for file in path.parent.glob("*.safetensors")) if path.name == "config.json" else 0
    return PlannedModel(name, spec, stored) if stored else published_model(name, spec, published_bytes(config, spec))


def model_of_gguf(name: str, file: Path) -> PlannedModel:
    """A model as a .gguf file stores it."""
    from .gguf import GGUFFile

    gguf = GGUFFile.open(file)
    spec = spec_from_gguf_metadata(gguf.metadata, "output.weight" not in gguf.tensors, str(file))
    return PlannedModel(name, spec, sum(tensor.nbytes for tensor in gguf.tensors.values()))
