"""Shapes of well-known models by name, so that they can be planned without being fetched."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..spec import ModelSpec
from .configs import spec_from_config
from .serving import published_bytes


def known_models() -> tuple[str, ...]:
    """The names that `known_spec` takes."""
    return tuple(_configs())


def known_spec(name: str) -> ModelSpec | None:
    """The shape of a well-known model, in any case of letters; None for others."""
    config = _configs().get(name.lower())
    return spec_from_config(config) if config else None


def known_bytes(name: str) -> float | None:
    """Bytes of its published weights, where they are neither bf16 throughout nor float32: experts in MXFP4."""
    config = _configs().get(name.lower())
    return published_bytes(config, spec_from_config(config)) if config else None


@cache
def _configs() -> dict[str, dict[str, Any]]:
    """What their config.json files say of the shape."""
    text = (Path(__file__).parent / "models.json").read_text(encoding="utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
    return configs
