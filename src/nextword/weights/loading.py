"""Opens weights by path."""

from __future__ import annotations

from pathlib import Path

from .source import GGUFSource, Source


def open_source(path: Path) -> Source:
    """The weights at `path`: a .gguf file or a Hugging Face folder. Reads only headers."""
    if path.is_dir():
        from .folder import FolderSource

        return FolderSource(path)
    return GGUFSource(path)
