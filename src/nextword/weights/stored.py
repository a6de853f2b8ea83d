"""Which models are on this machine, and their removal. No torch here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..base import RunError, UsageError
from . import hub
from .catalogue import CATALOGUE, CatalogueEntry, cached_file, find, is_cached


@dataclass(frozen=True)
class Stored:
    """A model on disk. `whole` is False for what an interrupted fetch left; `path` is its folder."""

    reference: str  # what to give as --model
    path: Path
    bytes: int
    whole: bool = True


def stored(cache: Path) -> list[Stored]:
    """Models that were fetched: pinned ones in nextword's cache, others in huggingface_hub's."""
    pinned = [found for entry in CATALOGUE if (found := _pinned(entry, cache))]
    return pinned + [Stored(f"hf:{each.repository}", each.path, each.bytes) for each in hub.cached()]


def find_stored(name: str, cache: Path) -> Stored | None:
    """The stored model of a catalogue name or hf:owner/name, if it is on disk."""
    entry = find(name)
    reference = entry.reference if entry else name.partition("@")[0]
    if entry and entry.wheel:
        return _pinned(entry, cache)
    return next((each for each in stored(cache) if each.reference.lower() == reference.lower()), None)


def remove(name: str, cache: Path) -> Stored:
    """Delete a fetched model and say what it was. Touches nothing outside the caches.

    Raises UsageError for what is not in them, RunError where deleting fails.
    """
    found = find_stored(name, cache)
    if found is None:
        there = ", ".join(each.reference for each in stored(cache)) or "nothing"
        raise UsageError(f"{name} is not among the fetched models; only those are removed. Fetched: {there}")
    try:
        if found.reference.startswith("hf:"):
            hub.remove(found.reference.removeprefix("hf:"))
        elif found.path.is_symlink():
            found.path.unlink()
        else:
            shutil.rmtree(found.path)
    except OSError as error:
        raise RunError(f"{error.filename or found.path}: {error.strerror or error}; not removed") from error
    return found


def _pinned(entry: CatalogueEntry, cache: Path) -> Stored | None:
    path = cached_file(entry, cache)
    if path is None or not path.parent.is_dir():
        return None
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    return Stored(entry.name, path.parent, size, is_cached(entry, cache)) if size else None
