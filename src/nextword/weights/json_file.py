"""Untrusted JSON files of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import base


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises UsageError that names the file and the problem."""
    missing = f"{path.parent} has no {path.name}: it is not a model folder, or writing it was interrupted"
    return base.read_json(path, missing)
