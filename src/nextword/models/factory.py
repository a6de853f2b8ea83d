"""Builds the torch module of a ModelSpec."""

from __future__ import annotations

from ..base import UsageError
from ..spec import ModelSpec
from .model import Model
from .recurrent import Recurrent
from .transformer import Transformer


def build(spec: ModelSpec) -> Model:
    """The torch module for `spec`, its parameters freshly initialised, not prepared (see `prepare`).

    Raises UsageError for models that are not implemented.
    """
    if spec.kind != "transformer":
        return Recurrent(spec)
    missing = [name for name, needed in _not_built(spec).items() if needed]
    if missing:
        raise UsageError(f"nextword plans models with {' and '.join(missing)} but cannot run them yet")
    return Transformer(spec)


def _not_built(spec: ModelSpec) -> dict[str, bool]:
    experts = spec.experts
    return {
        "latent attention": spec.latent is not None,
        "shared experts": experts is not None and experts.shared > 0,
        "routing bias": experts is not None and experts.correction_bias,
    }
