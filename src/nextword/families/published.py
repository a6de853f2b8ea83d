"""Shapes of well-known models by name, for planning without a download."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..spec import ModelSpec
from . import spec_from_config


def known_models() -> tuple[str, ...]:
    """The names accepted by `known_spec`."""
    return tuple(_configs())


def known_spec(name: str) -> ModelSpec | None:
    """The shape of a well-known model, by its case-insensitive name; None for others."""
    config = known_config(name)
    return spec_from_config(config) if config else None


def known_config(name: str) -> dict[str, Any] | None:
    """Its config.json, as far as shape and storage type are concerned."""
    return _configs().get(name.lower())


@cache
def _configs() -> dict[str, dict[str, Any]]:
    text = (Path(__file__).parent / "models.json").read_text(encoding="utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
    return configs
