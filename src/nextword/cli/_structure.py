"""--json-schema, --regex and --choices → a structure the output must match."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..base import UsageError, read_text

if TYPE_CHECKING:
    from ..engine import Structure

_LARGEST_SCHEMA = 1 << 20  # bytes of a schema file


def structure_from_options(json_schema: str | None, regex: str | None, choices: str | None) -> Structure | None:
    """The structure from the options; None if none is given. `json_schema` is a file name.

    Raises UsageError if more than one is given, if the file is not a JSON schema, or if the structure is invalid.
    """
    options = {"--json-schema": json_schema, "--regex": regex, "--choices": choices}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other. Give one of them")
    if not given:
        return None
    from ..engine import Structure

    if json_schema is not None:
        schema = _read(json_schema)
        try:
            return Structure(json_schema=schema)
        except UsageError as error:
            raise UsageError(f"{json_schema}: {error}") from None
    return Structure(regex=regex, choices=None if choices is None else _split(choices))


def _read(file: str) -> str:
    try:
        return read_text(file, _LARGEST_SCHEMA)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text (byte {error.start}). A JSON schema is JSON") from None
    except OSError as error:
        raise UsageError(f"JSON schema {file}: {error.strerror}") from None


def _split(choices: str) -> tuple[str, ...]:
    """Texts separated by commas, spaces kept; or a JSON array of texts, which may contain commas."""
    if not choices.startswith("["):
        return tuple(choices.split(","))
    try:
        texts = json.loads(choices)
    except (ValueError, RecursionError):
        raise UsageError(
            f'--choices {choices!r} begins with [ but is not a JSON array. Write \'["one, two", "three"]\''
        ) from None
    return tuple(texts)
