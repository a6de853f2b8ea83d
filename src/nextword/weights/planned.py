"""The model to plan for, by name: one of the catalogue, in the cache or not, or a well-known one."""

from __future__ import annotations

from pathlib import Path

from ..families.gguf_metadata import spec_from_gguf_metadata
from ..plan.questions import PlannedModel, known_model
from .catalogue import cache_folder, cached_file, find, is_cached


def model_by_name(name: str) -> PlannedModel | None:
    """A model of the catalogue, as its file stores it if it is in the cache, or a well-known model; None for others."""
    entry = find(name)
    if entry is None:
        return known_model(name)
    file = cached_file(entry, cache_folder()) if is_cached(entry, cache_folder()) else None
    return PlannedModel(name, entry.spec) if file is None else model_of_gguf(name, file)


def model_of_gguf(name: str, file: Path) -> PlannedModel:
    """A model as a .gguf file stores it."""
    from .gguf import GGUFFile

    gguf = GGUFFile.open(file)
    spec = spec_from_gguf_metadata(gguf.metadata, "output.weight" not in gguf.tensors, str(file))
    return PlannedModel(name, spec, sum(tensor.nbytes for tensor in gguf.tensors.values()))
