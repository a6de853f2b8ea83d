"""JSON files of a model folder, read without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base import UsageError

_LARGEST = 64 << 20  # bytes; real configs, indexes and tokenizers are far smaller


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of sensible size. Raises UsageError that names the file and the fault."""
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{path}: {path.stat().st_size} bytes is too large for a configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent}: no {path.name} there. A model folder holds config.json and safetensors"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data
