"""A ModelSpec → the torch module of it."""

from __future__ import annotations

from ..base import UsageError
from ..spec import ModelSpec
from .model import Model
from .recurrent import Recurrent
from .transformer import Transformer


def build(spec: ModelSpec) -> Model:
    """The torch module for `spec`, its parameters freshly initialised. Raises UsageError for what is not built."""
    if spec.kind != "transformer":
        return Recurrent(spec)
    if spec.experts or spec.latent:
        what = "a mixture of experts" if spec.experts else "latent attention"
        raise UsageError(
            f"nextword plans {what} models but cannot run them yet. Runs: dense transformers, RNN, LSTM, GRU"
        )
    return Transformer(spec)
