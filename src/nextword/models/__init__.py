"""A ModelSpec made of torch modules.

A `Model` has a `spec`, `forward(tokens, state=None) -> (logits, state)`, and its two halves
`hidden(tokens, state)` and `logits(hidden)`, for callers that want the logits of a few positions only.
"""

from .building import build
from .cache import KVCache
from .model import Model, State
from .recurrent import Recurrent, RecurrentState
from .transformer import Transformer
from .tree import Tree

__all__ = ["KVCache", "Model", "Recurrent", "RecurrentState", "State", "Transformer", "Tree", "build"]
