"""nextword's own RNN, LSTM and GRU: tensors under torch's names, so that `nn.LSTM` loads them as they are."""

from __future__ import annotations

from typing import Any

from ...plan.shapes import GATES
from ...spec import ModelSpec
from .common import Entry, Family, entry


def entries(spec: ModelSpec) -> list[Entry]:
    """Our parameters, each with the tensor that holds it, named the same."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (spec.vocabulary, spec.width)}
    rows = GATES[spec.kind] * spec.width
    for layer in range(spec.layers):
        for part in ("ih", "hh"):
            shapes[f"recurrent.weight_{part}_l{layer}"] = (rows, spec.width)
            shapes[f"recurrent.bias_{part}_l{layer}"] = (rows,)
    if not spec.tied:
        shapes["head.weight"] = (spec.vocabulary, spec.width)
    if spec.head_bias:
        shapes["head.bias"] = (spec.vocabulary,)
    return [entry(name, name, *shape) for name, shape in shapes.items()]


def config(spec: ModelSpec) -> dict[str, Any]:
    """The shape, under transformers' names."""
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "max_position_embeddings": spec.context,
        "tie_word_embeddings": spec.tied,
        "head_bias": spec.head_bias,
    }


RNN = Family("nextword-rnn", "NextwordRNN", ("",), entries, config)
LSTM = Family("nextword-lstm", "NextwordLSTM", ("",), entries, config)
GRU = Family("nextword-gru", "NextwordGRU", ("",), entries, config)
