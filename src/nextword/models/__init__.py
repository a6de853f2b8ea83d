"""A ModelSpec made of torch modules.

A `Model` has a `spec`, `forward(tokens) -> logits`, and its two halves `hidden(tokens)` and `logits(hidden)`, for
callers that want the logits of a few positions only. `backend.TorchBackend` runs one behind the engine.
"""

from .building import build
from .model import Model
from .recurrent import Recurrent, RecurrentState
from .transformer import Transformer

__all__ = ["Model", "Recurrent", "RecurrentState", "Transformer", "build"]
