"""The tensors of a ModelSpec by shape, the basis of counts, FLOPs, states and LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..base import UsageError
from ..spec import GATES as GATES
from ..spec import ModelSpec

Part = Literal["embedding", "positions", "attention", "MLP", "router", "experts", "recurrent", "norms", "head"]
PARTS: tuple[Part, ...] = (
    "embedding", "positions", "attention", "MLP", "router", "experts", "recurrent", "norms", "head",
)  # fmt: skip
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class TensorShape:
    """Tensors of one shape. `copies` is their number in the model, `active` the number used per token.

    `multiplies`: a matrix product, not a look-up table, bias or norm.
    """

    part: Part
    name: str
    shape: tuple[int, ...]  # (out, in) for matrices
    copies: int
    active: int
    multiplies: bool

    @property
    def numbers(self) -> int:
        """The parameters of all copies."""
        return self.copies * math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


def tensors(spec: ModelSpec) -> tuple[TensorShape, ...]:
    """All tensors of a model of `spec`. A head tied to the embedding is listed with 0 copies."""
    blocks = _transformer(spec) if spec.kind == "transformer" else _recurrent(spec)
    return (*_ends(spec), *blocks)


def separate(spec: ModelSpec, names: tuple[str, ...]) -> tuple[TensorShape, ...]:
    """The layers' separate matrices by `names` (of LORA_TARGETS, or "all"), as transformers stores them.

    Raises UsageError for unknown names and for matrices that the model does not have.
    """
    named = [(name, tensor) for tensor in tensors(spec) if tensor.is_matrix for name, tensor in _apart(spec, tensor)]
    known = tuple(dict.fromkeys(name for name, _ in named))
    for name in names:
        if name != "all" and name not in known:
            raise UsageError(
                f"the model has no matrix called {name!r} to adapt; it has {', '.join(known) or 'none by these names'}"
            )
    return tuple(tensor for name, tensor in named if name in names or "all" in names)


def _apart(spec: ModelSpec, tensor: TensorShape) -> Iterator[tuple[str, TensorShape]]:
    """The separate matrices stacked in `tensor`, by their names in LORA_TARGETS."""
    rows, columns = tensor.shape
    name = tensor.name.removeprefix("shared ").removeprefix("expert ")
    heads, kv_heads = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    parts: dict[str, dict[str, int]] = {
        "queries, keys, values": {"q": heads, "k": kv_heads, "v": kv_heads},
        "attention out": {"o": rows},
        "gate and up": {"gate": rows // 2, "up": rows // 2},
        "up": {"up": rows},
        "down": {"down": rows},
    }
    for matrix, width in parts.get(name, {}).items():
        yield matrix, replace(tensor, name=f"{tensor.name}: {matrix}", shape=(width, columns))


def expert_layers(spec: ModelSpec) -> int:
    """Layers whose MLP is a mixture of experts."""
    return max(0, spec.layers - spec.experts.dense_layers) if spec.experts else 0


def _matrix(part: Part, name: str, rows: int, columns: int, copies: int, active: int | None = None) -> TensorShape:
    return TensorShape(part, name, (rows, columns), copies, copies if active is None else active, True)


def _vector(part: Part, name: str, width: int, copies: int, active: int | None = None) -> TensorShape:
    return TensorShape(part, name, (width,), copies, copies if active is None else active, False)


def _ends(spec: ModelSpec) -> Iterator[TensorShape]:
    yield TensorShape("embedding", "embedding", (spec.vocabulary, spec.width), 1, 1, False)
    if spec.kind == "transformer" and spec.position == "learned":
        yield TensorShape("positions", "positions", (spec.context, spec.width), 1, 1, False)
    yield TensorShape("head", "head", (spec.vocabulary, spec.width), 0 if spec.tied else 1, 1, True)
    if spec.head_bias:
        yield _vector("head", "head bias", spec.vocabulary, 1)


def _recurrent(spec: ModelSpec) -> Iterator[TensorShape]:
    """torch's layout: an input matrix, a state matrix and two biases per layer, with gates stacked."""
    rows = GATES[spec.kind] * spec.width
    yield _matrix("recurrent", "input to gates", rows, spec.width, spec.layers)
    yield _matrix("recurrent", "state to gates", rows, spec.width, spec.layers)
    yield _vector("recurrent", "two biases", rows, 2 * spec.layers)


def _transformer(spec: ModelSpec) -> Iterator[TensorShape]:
    yield from _latent_attention(spec) if spec.latent else _attention(spec)
    dense = spec.layers - expert_layers(spec)
    if dense:
        yield from _mlp(spec, "MLP", "", spec.mlp_width, dense, dense, spec.mlp_bias)
    if spec.experts:
        yield from _experts(spec)
    a_layer = {"before": 2, "after": 2, "both": 4}[spec.norm_place]
    yield from _norm(spec, "norms", spec.width, a_layer * spec.layers + 1)


def _norm(spec: ModelSpec, name: str, width: int, copies: int) -> Iterator[TensorShape]:
    yield _vector("norms", name, width, copies)
    if spec.norm == "layer" and spec.norm_bias:
        yield _vector("norms", f"{name}, biases", width, copies)


def _attention(spec: ModelSpec) -> Iterator[TensorShape]:
    rows = (spec.heads + 2 * spec.kv_heads) * spec.head_width
    yield _matrix("attention", "queries, keys, values", rows, spec.width, spec.layers)
    yield _matrix("attention", "attention out", spec.width, spec.heads * spec.head_width, spec.layers)
    if spec.attention_bias:
        yield _vector("attention", "queries, keys, values, bias", rows, spec.layers)
    if spec.attention_out_bias:
        yield _vector("attention", "attention out, bias", spec.width, spec.layers)
    if spec.attention_sinks:
        yield _vector("attention", "attention sinks", spec.heads, spec.layers)
    if spec.qk_norm == "head":
        yield from _norm(spec, "query and key norms", spec.head_width, 2 * spec.layers)
    if spec.qk_norm == "full":
        yield from _norm(spec, "query and key norms", (spec.heads + spec.kv_heads) * spec.head_width, spec.layers)


def _latent_attention(spec: ModelSpec) -> Iterator[TensorShape]:
    """DeepSeek-V2, 2405.04434, section 2.1 and appendix C."""
    latent, layers = spec.latent, spec.layers
    assert latent is not None
    queries = spec.heads * (latent.plain_head_width + latent.rope_head_width)
    if latent.query_rank:
        yield _matrix("attention", "queries down", latent.query_rank, spec.width, layers)
        yield _matrix("attention", "queries up", queries, latent.query_rank, layers)
        yield _vector("norms", "query latent norm", latent.query_rank, layers)
    else:
        yield _matrix("attention", "queries", queries, spec.width, layers)
    yield _matrix("attention", "keys and values down", latent.kv_rank + latent.rope_head_width, spec.width, layers)
    expanded = spec.heads * (latent.plain_head_width + latent.value_head_width)
    yield _matrix("attention", "keys and values up", expanded, latent.kv_rank, layers)
    yield _vector("norms", "key-value latent norm", latent.kv_rank, layers)
    yield _matrix("attention", "attention out", spec.width, spec.heads * latent.value_head_width, layers)
    if spec.attention_bias:
        down = latent.kv_rank + latent.rope_head_width + latent.query_rank
        yield _vector("attention", "latents, bias", down, layers)
    if spec.attention_out_bias:
        yield _vector("attention", "attention out, bias", spec.width, layers)


def _mlp(
    spec: ModelSpec, part: Part, whose: str, width: int, copies: int, active: int, bias: bool
) -> Iterator[TensorShape]:
    if not width:
        return
    inner = width * (2 if spec.mlp == "gated" else 1)
    up = "gate and up" if spec.mlp == "gated" else "up"
    yield _matrix(part, f"{whose}{up}", inner, spec.width, copies, active)
    yield _matrix(part, f"{whose}down", spec.width, width, copies, active)
    if bias:
        yield _vector(part, f"{whose}{up}, bias", inner, copies, active)
        yield _vector(part, f"{whose}down, bias", spec.width, copies, active)


def _experts(spec: ModelSpec) -> Iterator[TensorShape]:
    experts, layers = spec.experts, expert_layers(spec)
    assert experts is not None
    yield _matrix("router", "router", experts.count, spec.width, layers)
    if experts.bias:
        yield _vector("router", "router, bias", experts.count, layers)
    if experts.correction_bias:
        yield _vector("router", "router correction", experts.count, layers)
    yield from _mlp(
        spec, "experts", "expert ", experts.width, layers * experts.count, layers * experts.active, experts.bias
    )
    shared = layers * experts.shared
    width = experts.shared_width or experts.width
    if shared:
        yield from _mlp(spec, "experts", "shared expert ", width, shared, shared, False)
    if experts.shared_gate:
        yield _matrix("router", "shared expert gate", 1, spec.width, layers)
