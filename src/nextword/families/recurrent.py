"""nextword's own RNN, LSTM and GRU: tensors under torch's names, so that `nn.LSTM` loads them as they are."""

from __future__ import annotations

from ..spec import MOST_LAYERS
from .common import Family, count, flag
from .names import Names

_KEYS = {
    "vocabulary": count("vocab_size"),
    "width": count("hidden_size"),
    "layers": count("num_hidden_layers", most=MOST_LAYERS),
    "context": count("max_position_embeddings", 2048),
    "tied": flag("tie_word_embeddings", True),
    "head_bias": flag("head_bias", False),
}
FAMILIES = tuple(
    Family(f"nextword-{kind}", f"Nextword{kind.upper()}", _KEYS, {"kind": kind}, names=Names({}))
    for kind in ("rnn", "lstm", "gru")
)
