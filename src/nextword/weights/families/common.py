"""How a tensor of ours is made of tensors in a file, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...spec import ModelSpec, RopeSpec

Order = Literal["plain", "rotary_pairs", "qkv_by_head"]


@dataclass(frozen=True)
class Piece:
    """A tensor in the file and the rows of ours that it fills.

    `order` says how its rows stand: "rotary_pairs" has the two halves of every head interleaved (GGUF's
    Llama), "qkv_by_head" query, key and value of head 0, then of head 1, ... (GPT-NeoX). `transposed` matrices are
    (in, out) (GPT-2). `offset` is added on loading (Gemma stores norms as the distance from one).
    """

    name: str
    shape: tuple[int, ...]  # in our layout: (out, in) or (width,)
    order: Order = "plain"
    heads: int = 1
    transposed: bool = False
    offset: float = 0.0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape

    def row_order(self) -> np.ndarray | None:
        """Index that puts the file's rows into our order, or None where they are."""
        rows = np.arange(self.shape[0])
        if self.order == "rotary_pairs":
            return rows.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)
        if self.order == "qkv_by_head":
            return rows.reshape(self.heads, 3, -1).swapaxes(0, 1).reshape(-1)
        return None


@dataclass(frozen=True)
class Entry:
    """One of our parameters, by its name in the module, and the pieces stacked along its rows."""

    ours: str
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:])


@dataclass(frozen=True)
class Family:
    """A family of open weights: names of its tensors, and its config.json from a spec.

    `ignored` are regular expressions of tensors that files carry besides: buffers that follow from the
    configuration, and parts that are not the language model.
    """

    model_type: str  # in config.json
    architecture: str  # the transformers class
    prefixes: tuple[str, ...]  # what tensor names may begin with; the first is written
    entries: Callable[[ModelSpec], list[Entry]]
    config: Callable[[ModelSpec], dict[str, Any]]
    ignored: tuple[str, ...] = ()


def entry(ours: str, name: str, *shape: int, **options: Any) -> Entry:
    """An Entry of a single piece."""
    return Entry(ours, (Piece(name, shape, **options),))


def with_bias(
    ours: str, names: Sequence[str], rows: Sequence[int], inner: int, bias: bool, **options: Any
) -> list[Entry]:
    """Weight (and bias) of a matrix whose rows come from the modules `names`, stacked."""
    weight = tuple(Piece(f"{name}.weight", (out, inner), **options) for name, out in zip(names, rows, strict=True))
    if not bias:
        return [Entry(f"{ours}.weight", weight)]
    options.pop("transposed", None)
    biases = tuple(Piece(f"{name}.bias", (out,), **options) for name, out in zip(names, rows, strict=True))
    return [Entry(f"{ours}.weight", weight), Entry(f"{ours}.bias", biases)]


def norm(ours: str, name: str, width: int, bias: bool, offset: float = 0.0) -> list[Entry]:
    """Weight (and bias) of a norm."""
    entries = [entry(f"{ours}.weight", f"{name}.weight", width, offset=offset)]
    return [*entries, entry(f"{ours}.bias", f"{name}.bias", width)] if bias else entries


def rope_config(rope: RopeSpec) -> dict[str, Any]:
    """transformers' `rope_parameters` for a RopeSpec."""
    values: dict[str, Any] = {
        "rope_theta": rope.theta,
        "rope_type": "default" if rope.scaling == "none" else rope.scaling,
    }
    if rope.scaling != "none":
        values["factor"] = rope.factor
    if rope.scaling in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_context
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        if rope.attention_factor is not None:
            values["attention_factor"] = rope.attention_factor
    if rope.fraction != 1.0:
        values["partial_rotary_factor"] = rope.fraction
    return values


def activation_config(spec: ModelSpec) -> str:
    """transformers' name of the activation."""
    return {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[spec.activation]
