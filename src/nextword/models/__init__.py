"""A ModelSpec made of torch modules.

A model is anything with `spec`, `forward(tokens, state=None) -> (logits, state)`, and its two halves
`hidden(tokens, state)` and `logits(hidden)`, for callers that want the logits of a few positions only.
"""

from .cache import KVCache, State
from .transformer import Transformer, build

__all__ = ["KVCache", "State", "Transformer", "build"]
