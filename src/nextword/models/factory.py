"""Builds the torch module of a ModelSpec."""

from __future__ import annotations

from ..backend import check_runnable
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
    check_runnable(spec)
    return Transformer(spec)
