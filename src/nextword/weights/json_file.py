"""JSON files of a model folder, read without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..base import UsageError, read_regular

_LARGEST = 64 << 20  # bytes; real configs, indexes and tokenizers are far smaller


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file of sensible size. Raises UsageError that names the file and the fault."""
    try:
        data = json.loads(read_regular(path, _LARGEST))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent}: it has no {path.name}, so it is not a model folder, or writing it was interrupted"
        ) from None
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data
