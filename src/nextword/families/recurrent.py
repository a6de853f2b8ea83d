"""nextword's own RNN, LSTM and GRU, with torch's tensor names."""

from ..spec import MOST_LAYERS
from .common import Family, Key

_KEYS = {
    "vocabulary": Key("vocab_size"),
    "width": Key("hidden_size"),
    "layers": Key("num_hidden_layers", most=MOST_LAYERS),
    "context": Key("max_position_embeddings", 2048),
    "tied": Key("tie_word_embeddings", True),
    "head_bias": Key("head_bias", False),
}
FAMILIES = tuple(
    Family(f"nextword-{kind}", f"Nextword{kind.upper()}", _KEYS, {"kind": kind}) for kind in ("rnn", "lstm", "gru")
)
