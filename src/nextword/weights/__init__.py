"""Where weights come from and go to: catalogue, safetensors folders, GGUF, one mapping file a family.

Names are imported on first use, so that the catalogue and the GGUF reader are there without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import convert, write_model
    from .loading import DTYPES, Dtype, Loaded, load, load_model, open_source

_HOMES = {
    "convert": "conversion",
    "DTYPES": "loading",
    "Dtype": "loading",
    "Loaded": "loading",
    "load": "loading",
    "load_model": "loading",
    "open_source": "loading",
    "write_model": "conversion",
}

__all__ = ["DTYPES", "Dtype", "Loaded", "convert", "load", "load_model", "open_source", "write_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
