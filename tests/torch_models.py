"""The PyTorch model of a file, folder or loaded model: the reference of what the engine computes."""

from __future__ import annotations

from pathlib import Path

from nextword import LanguageModel
from nextword.models import Model
from nextword.models.weights import load_torch_model
from nextword.weights.loading import open_source


def torch_model(of: Path | str | LanguageModel) -> Model:
    """In float32, dequantized."""
    return load_torch_model(open_source(of.loaded.path if isinstance(of, LanguageModel) else Path(of)))
