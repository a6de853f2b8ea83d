"""FLOPs of a model, from its matrix products; a multiply and an add count as two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import UsageError
from ..spec import ModelSpec
from .figure import Figure, Parts, figure
from .parameters import parameters
from .states import adapters

Recompute = Literal["none", "selective", "full"]
Masked = Literal["computed", "skipped"]

_MATRICES = "every weight multiplies once a token; the input look-up does not (Kaplan et al. 2020, 2001.08361, §2.1)"
_ATTENTION = "scores and weighted values (Chowdhery et al. 2022, 2204.02311, appendix B)"
_BACKWARD = "the backward pass has two products for each of the forward pass"
_FROZEN = (
    "frozen weights: the gradient by a layer's input, none by its weights: half of the backward pass (Kaplan et al."
    " 2020, 2001.08361, §2.1; Hu et al. 2021, 2106.09685, §4.2)"
)
_ADAPTERS = "low-rank adapters (Hu et al. 2021, 2106.09685): trained, so 2 forward and 4 backward"


@dataclass(frozen=True)
class Flops(Parts):
    """FLOPs of `tokens` tokens in sequences of `context`, recomputation included in `total`."""

    units: ClassVar = {"total": "FLOPs", "model": "FLOPs", "per_token": "FLOPs/token", "tokens": "tokens"}
    tokens: float
    context: int
    rule: Figure  # 6 N D; 2 N D without the backward pass; 4 N D where the weights are frozen

    @property
    def model(self) -> float:
        """FLOPs without recomputation: the numerator of MFU."""
        return self.total - self.part("recomputed")

    @property
    def per_token(self) -> float:
        return self.model / self.tokens


def flops(
    spec: ModelSpec,
    context: int | None = None,
    tokens: float | None = None,
    *,
    backward: bool = True,
    recompute: Recompute = "none",
    masked: Masked = "computed",
    lora: int = 0,
    lora_targets: tuple[str, ...] = (),
) -> Flops:
    """FLOPs of a pass over `tokens` tokens (default: one sequence) in sequences of `context`.

    `masked` says whether the attention kernel computes the masked half and what lies outside a window
    ("computed", the convention of PaLM's MFU and of torch's FlopCounterMode) or skips it. With adapters of rank
    `lora` the weights are frozen: 4 FLOPs a weight and token instead of 6, and 6 for the adapters' own.
    Raises UsageError for sizes below one.
    """
    context = spec.context if context is None else context
    tokens = context if tokens is None else tokens
    if context < 1 or tokens <= 0:
        raise UsageError(f"FLOPs need a context and tokens of at least 1, not {context} and {tokens}")
    weights = parameters(spec).multiplying
    pairs, width = attended(spec, context, masked), attention_width(spec)
    source = _ATTENTION + ("; the kernel skips what is masked" if masked == "skipped" else "; full square")
    parts = [figure("forward, matrices", "FLOPs", "2 * weights * tokens", _MATRICES, weights=weights, tokens=tokens)]
    sums = {"pairs": pairs, "heads_width": width, "tokens": tokens, "context": context}
    if pairs:
        parts.append(
            figure("forward, attention", "FLOPs", "2 * pairs * heads_width * tokens / context", source, **sums)
        )
    if backward:
        times, why = (1, _FROZEN) if lora else (2, _BACKWARD)
        inputs = {"times": times, "weights": weights, "tokens": tokens}
        parts.append(figure("backward, matrices", "FLOPs", "times * 2 * weights * tokens", why, **inputs))
        if pairs:
            formula = "2 * 2 * pairs * heads_width * tokens / context"
            parts.append(figure("backward, attention", "FLOPs", formula, _BACKWARD, **sums))
        if recompute == "full":
            parts.append(_recomputed(spec, weights, sums))
        if lora:
            trained = sum(adapter.active * math.prod(adapter.shape) for adapter in adapters(spec, lora, lora_targets))
            parts.append(figure("adapters", "FLOPs", "6 * adapters * tokens", _ADAPTERS, adapters=trained,
                                tokens=tokens))  # fmt: skip
    times = 2 if not backward else 4 if lora else 6
    source = "Kaplan et al. 2020, 2001.08361, §2.1; N active parameters" + ("; they are frozen" if lora else "")
    rule = figure(f"{times} N D", "FLOPs", f"{times} * N * D", source, N=parameters(spec).active, D=tokens)
    return Flops(tuple(parts), tokens, context, rule)


def attended(spec: ModelSpec, context: int, masked: Masked) -> int:
    """Query-key pairs per sequence, summed over the layers; 0 for recurrent kinds."""
    if spec.kind != "transformer":
        return 0
    if masked == "computed":
        return spec.layers * context * context
    windows = spec.windows or (0,) * spec.layers
    return sum(_causal_pairs(context, window) for window in windows)


def _causal_pairs(context: int, window: int) -> int:
    """Pairs where each query attends to itself and earlier keys, at most `window`."""
    reach = min(window or context, context)
    return reach * (reach + 1) // 2 + (context - reach) * reach


def attention_width(spec: ModelSpec) -> int:
    """Multiply-adds a query-key pair and layer: the scores' width and the values' width over all heads."""
    if spec.latent:
        latent = spec.latent
        return spec.heads * (latent.plain_head_width + latent.rope_head_width + latent.value_head_width)
    return 2 * spec.heads * spec.head_width


def _recomputed(spec: ModelSpec, weights: int, sums: dict[str, float]) -> Figure:
    blocks = weights - spec.vocabulary * spec.width
    formula = "2 * blocks * tokens + 2 * pairs * heads_width * tokens / context"
    source = "the layers' forward pass once more, the head's not (Korthikanti et al. 2022, 2205.05198, §5)"
    return figure("recomputed", "FLOPs", formula, source, blocks=blocks, **sums)
