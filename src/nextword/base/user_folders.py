"""Where the system keeps a user's files of each kind."""

import os
import sys
from pathlib import Path
from typing import Literal

CACHE_VARIABLE = "NEXTWORD_CACHE"
_MAC = {"cache": "Library/Caches", "data": "Library/Application Support"}
_XDG = {"cache": ("XDG_CACHE_HOME", ".cache"), "data": ("XDG_DATA_HOME", ".local/share")}


def cache_folder() -> Path:
    """The folder of files that can be made or downloaded again: $NEXTWORD_CACHE, or the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return user_folder("cache")


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """nextword's folder among the user's; it may not exist.

    It follows the XDG base directory specification, which ignores relative paths, or macOS's conventions.
    """
    if sys.platform == "darwin":
        return Path.home() / _MAC[kind] / "nextword"
    variable, default = _XDG[kind]
    chosen = Path(os.environ.get(variable, ""))
    return (chosen if chosen.is_absolute() else Path.home() / default) / "nextword"
