"""ModelSpec: a model in numbers. Torch-free; imports only `base`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from .base.fields import Within, check_fields, from_plain

MOST, MOST_LAYERS = 1 << 28, 10_000  # far beyond any model, small enough to be safe in arithmetic
Size = Annotated[int, Within(1, MOST)]
Count = Annotated[int, Within(0, MOST)]  # 0: none, or not stated
Positive = Annotated[float, Within(above=0)]

ModelKind = Literal["transformer", "rnn", "lstm", "gru"]
GATES = {"rnn": 1, "gru": 3, "lstm": 4}  # matrices of a cell, each once for the input and once for the state


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions. Angle of pair i at position p: p * theta^(-2i / (fraction * head_width)).

    `scaling` stretches them to longer contexts: "linear" (positions divided by `factor`), "llama3"
    (Llama 3.1: low frequencies divided, a smooth band between), "yarn" (Peng et al. 2023, 2309.00071), "longrope"
    (Ding et al. 2024, 2402.13753: each frequency divided by its own factor, from the long ones if `factor`,
    the context over `original_context`, is above 1, otherwise from the short ones).
    """

    theta: Positive = 10_000.0
    fraction: Annotated[float, Within(least=0, most=1)] = 1.0  # share of the head width that rotates (GPT-NeoX: 0.25)
    scaling: Literal["none", "linear", "llama3", "yarn", "longrope"] = "none"
    factor: Positive = 1.0
    original_context: Count = 0  # llama3, yarn, longrope: the context before stretching
    low_frequency: float = 1.0  # llama3
    high_frequency: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    # yarn, longrope: multiplies cos and sin; None means 0.1 ln(factor) + 1, sqrt(1 + ln(factor) / ln(original_context))
    attention_factor: float | None = None
    truncate: bool = True  # yarn: round the band's ends to whole pairs
    short_factors: tuple[Positive, ...] = ()  # longrope: one per rotating pair
    long_factors: tuple[Positive, ...] = ()  # longrope

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ExpertsSpec:
    """Mixture of experts in place of the MLP: a router sends each token to `active` of `count` experts."""

    count: Size  # routed experts a layer
    active: Size  # routed experts a token passes through
    width: Size  # inner width of one expert
    normalize: bool = True  # a token's active experts have weights that sum to 1; otherwise a softmax over all experts
    bias: bool = False  # of the experts' matrices and of the router (gpt-oss)
    dense_layers: Count = 0  # leading layers that keep a plain MLP

    # planned only
    shared: Count = 0  # experts that every token passes through
    shared_width: Count = 0  # inner width of one shared expert; 0 means `width`
    shared_gate: bool = False  # the shared expert is weighted by its own gate (Qwen2-MoE)
    correction_bias: bool = False  # a bias per expert steers the routing (DeepSeek-V3)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention, DeepSeek-V2 (2405.04434) (planned only: not built yet)."""

    kv_rank: Count
    query_rank: Count  # 0: queries are not compressed
    rope_head_width: Count
    plain_head_width: Count  # part of each query/key head without positions
    value_head_width: Count

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ModelSpec:
    """A language model in numbers. Recurrent kinds use only the first block of fields.

    Units: widths are counts of features, `context` and `windows` are tokens. Raises UsageError for an invalid
    number or name.
    """

    kind: ModelKind
    vocabulary: Size
    width: Size  # of the residual stream; of embedding and hidden state in a recurrent net
    layers: Annotated[int, Within(1, MOST_LAYERS)]
    context: Size
    tied: bool = True  # the output head is the embedding matrix

    # attention
    heads: Count = 0
    kv_heads: Count = 0
    head_width: Count = 0
    qk_norm: Literal["none", "head", "full"] = "none"  # a norm over each head, or over all heads together
    attention_bias: bool = False  # on query, key and value
    attention_out_bias: bool = False
    attention_scale: float | None = None  # None: head_width ** -0.5
    attention_softcap: Positive | None = None
    attention_sinks: bool = False  # a learned logit per head in the softmax's denominator (gpt-oss)
    windows: tuple[Count, ...] = ()  # one per layer; 0 is full attention; () is full everywhere

    # MLP
    mlp_width: Count = 0
    mlp: Literal["gated", "plain"] = "gated"
    mlp_bias: bool = False
    # swiglu_clamped (gpt-oss): (up + 1) * gate * sigmoid(1.702 gate), gate at most 7, up within -7 and 7
    activation: Literal["silu", "gelu", "gelu_tanh", "swiglu_clamped"] = "silu"

    # norms and residuals
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Annotated[float, Within(least=0)] = 1e-5
    norm_offset: bool = False  # multiply by (1 + weight), as Gemma stores it
    norm_bias: bool = True  # of a LayerNorm; an RMSNorm has none
    norm_place: Literal["before", "after", "both"] = "before"  # after: OLMo 2; both: Gemma 2 and 3
    parallel: bool = False  # attention and MLP read the same input (GPT-NeoX)
    residual_scale: Positive | None = None  # multiplies what attention and MLP add (Granite)

    # positions
    position: Literal["rotary", "learned", "none"] = "rotary"
    rope: RopeSpec = field(default_factory=RopeSpec)
    local_rope: RopeSpec | None = None  # for layers with a window, where it differs (Gemma 3)
    rope_layers: tuple[bool, ...] = ()  # one per layer: whether it has positions (SmolLM3); () is all

    # embedding and head
    embedding_scale: float | None = None
    head_bias: bool = False
    logit_softcap: Positive | None = None
    logit_scale: Positive | None = None  # multiplies the logits (Granite)

    experts: ExpertsSpec | None = None
    latent: LatentSpec | None = None  # planned only

    def __post_init__(self) -> None:
        check_fields(self)

    def window(self, layer: int) -> int:
        """Sliding window of a layer in tokens; 0 means full attention."""
        return self.windows[layer] if self.windows else 0

    def has_rope(self, layer: int) -> bool:
        """Whether a layer rotates its queries and keys."""
        return self.position == "rotary" and (not self.rope_layers or self.rope_layers[layer])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Build a spec from `to_dict`'s output. Raises UsageError that names the invalid field."""
        return from_plain(cls, data)
