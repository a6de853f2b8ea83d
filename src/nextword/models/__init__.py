"""PyTorch models built from a ModelSpec.

A `Model` has a `spec`, `forward(tokens) -> logits`, and its two halves `hidden(tokens)` and `logits(hidden)`, for
callers that need the logits of a few positions only. It is plain PyTorch until `prepare` swaps in compiled kernels.
`backend.TorchBackend` runs it for the engine.
"""

from .factory import build
from .model import Execution, Model
from .prepare import prepare
from .recurrent import Recurrent, RecurrentState
from .transformer import Transformer

__all__ = ["Execution", "Model", "Recurrent", "RecurrentState", "Transformer", "build", "prepare"]
