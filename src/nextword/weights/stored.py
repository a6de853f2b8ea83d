"""Lists and removes the models on this machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..base import RunError, UsageError
from . import hub
from .catalogue import CATALOGUE, CatalogueEntry, cached_file, find, is_cached


@dataclass(frozen=True)
class Stored:
    """A model on disk; `path` is its folder."""

    reference: str  # the value for --model
    path: Path
    bytes: int


def stored(cache: Path) -> list[Stored]:
    """Downloaded models: pinned ones in nextword's cache, others in huggingface_hub's."""
    pinned = [model for entry in CATALOGUE if (model := _pinned(entry, cache))]
    return pinned + [Stored(f"hf:{name}", path, size) for name, (path, size) in hub.cached().items()]


def find_stored(name: str, cache: Path) -> Stored | None:
    """The stored model of a catalogue name or hf:owner/name, if it is on disk."""
    entry = find(name)
    reference = entry.reference if entry else "/".join(name.partition("@")[0].split("/")[:2])  # hf:owner/name
    if entry and entry.wheel:
        return _pinned(entry, cache)
    return next((model for model in stored(cache) if model.reference.lower() == reference.lower()), None)


def remove(name: str, cache: Path) -> Stored:
    """Delete a downloaded model and return it. Touches nothing outside the caches.

    Raises UsageError if it is not in them, RunError if deleting fails.
    """
    model = find_stored(name, cache)
    if model is None:
        fetched = ", ".join(other.reference for other in stored(cache)) or "none"
        raise UsageError(f"{name} is not a downloaded model; only those can be removed. Downloaded: {fetched}")
    try:
        if model.reference.startswith("hf:"):
            hub.remove(model.reference.removeprefix("hf:"))
        elif model.path.is_symlink():
            model.path.unlink()
        else:
            shutil.rmtree(model.path)
    except OSError as error:
        raise RunError(f"{error.filename or model.path}: {error.strerror or error}; not removed") from error
    return model


def _pinned(entry: CatalogueEntry, cache: Path) -> Stored | None:
    path = cached_file(entry, cache)
    if path is None or not is_cached(entry, cache):
        return None
    return Stored(entry.name, path.parent, path.stat().st_size)
