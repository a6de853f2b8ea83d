"""Activation memory: bytes that a training step keeps for its backward pass.

`activations` counts the tensors that nextword's own transformer saves for autograd (a test compares it with torch's
saved-tensor hooks); mixtures of experts, latent attention and recurrent kinds are estimates, and marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base import UsageError
from ..spec import ModelSpec
from .compute import Recompute
from .figure import Figure, Parts, figure
from .shapes import GATES, expert_layers

Kernel = Literal["flash", "plain"]

_KEPT = "tensors that autograd keeps of nextword's layers"
_ESTIMATE = "estimate: the layer's matrix products keep their inputs; not measured"
# bytes that a recurrent layer keeps on a CPU, a token and unit, in float32 and with bfloat16 products: of an LSTM
# mostly oneDNN's workspace (15.2 to 15.9 float32 numbers, or 11.4), of nextword's GRU and RNN the states and gates
_ON_CPU = {"lstm": (66.0, 47.5), "gru": (20.0, 18.0), "rnn": (4.0, 4.0)}


@dataclass(frozen=True)
class Activations(Parts):
    """Bytes kept between the forward and the backward pass of one micro-batch."""


@dataclass(frozen=True)
class _Kernels:
    """The operations that nextword's compiled kernels fuse: RMSNorms, and in float32 those around matrix products."""

    norms: bool
    products: bool


def activations(
    spec: ModelSpec,
    batch: int,
    context: int,
    *,
    width_bytes: float = 2,
    recompute: Recompute = "none",
    kernel: Kernel = "flash",
    cpu: bool = False,
    fused: bool = False,
    adapted: bool = False,
) -> Activations:
    """Bytes kept for `batch` sequences of `context` tokens, without the logits.

    `width_bytes` is 4 in float32 and 2 with 16-bit matrix products. Recomputation "selective" recomputes everything
    except weight products: norms, rope, the MLP's inner product and a "plain" kernel's scores; "full" keeps each
    layer's input and recomputes one layer at a time. `cpu`: what recurrent layers keep there was measured, elsewhere
    it is an estimate. `fused`: training with nextword's compiled kernels, on a CPU, which do not keep a norm's output,
    a gated product or a second copy of queries and keys. `adapted` models have adapters on their matrices, which run on
    torch: only norms' normalised forms are not kept.
    """
    if batch < 1 or context < 1:
        raise UsageError(f"activations need a batch and a context of at least 1, not {batch} and {context}")
    sizes = {"tokens": batch * context, "a": width_bytes}
    kernels = _Kernels(norms=fused and spec.norm == "rms", products=fused and not adapted)
    last = _final_norm(spec, sizes, kernels)
    if spec.kind != "transformer":
        return Activations((_recurrent(spec, sizes, cpu), *last))
    if recompute != "full":
        return Activations((*_layers(spec, sizes, context, recompute, kernel, spec.layers, kernels), *last))
    kept = {**sizes, "layers": spec.layers, "width": spec.width}
    a_residual = figure("inputs of the layers", "bytes", "layers * tokens * 4 * width", "Korthikanti et al. 2022, §5; "
                        "the residual stream is float32", **kept)  # fmt: skip
    one = Activations(_layers(spec, sizes, context, "none", kernel, 1, kernels)).total
    again = figure("one layer formed again", "bytes", "one_layer", "the layer whose backward pass runs", one_layer=one)
    return Activations((a_residual, again, *last))


def _layers(
    spec: ModelSpec, sizes: dict[str, float], context: int, recompute: Recompute, kernel: Kernel, layers: int,
    fused: _Kernels,
) -> tuple[Figure, ...]:  # fmt: skip
    sizes = {**sizes, "layers": layers}
    lean = recompute == "selective"
    parts = [
        *_norms(spec, sizes, lean, fused),
        *_attention(spec, sizes, context, lean, kernel, fused),
        *_mlp(spec, sizes, lean, fused),
    ]
    return tuple(part for part in parts if part.value)


def gated_by_silu(spec: ModelSpec) -> bool:
    """Whether all MLPs are SwiGLU without biases, as the compiled kernels compute."""
    return spec.mlp == "gated" and spec.activation == "silu" and not spec.mlp_bias and not spec.experts


def _norms(spec: ModelSpec, sizes: dict[str, float], lean: bool, fused: _Kernels) -> list[Figure]:
    """Each norm keeps its input in float32; an unfused RMSNorm also its normalised form."""
    if lean:
        source = "what recomputation starts from: the layer's input, and its products' outputs, here of width d"
        formula = "layers * tokens * (4 * width + 2 * a * width)"
        return [figure("inputs of the layers", "bytes", formula, source, width=spec.width, **sizes)]
    norms = {"before": 2, "after": 2, "both": 4}[spec.norm_place]
    inputs = norms - 1 if spec.parallel else norms  # parallel: both norms before the layer read the same
    normalised = 0 if spec.norm == "layer" or fused.norms else norms
    before = spec.norm_place == "before" and not spec.parallel
    joined = fused.norms and fused.products and before and gated_by_silu(spec) and not spec.attention_out_bias
    sizes = {**sizes, "norms": norms, "width": spec.width}
    formula = "layers * tokens * (4 * (inputs + normalised) * width + 4 * norms)"
    source = f"{_KEPT}: the input, and its normalised form where the norm is not one fused operation"
    return [
        figure("norms", "bytes", formula, source, inputs=inputs, normalised=normalised, **sizes),
        figure("inputs of the layers' matrices", "bytes", "layers * tokens * kept * a * width", _KEPT,
               kept=0 if joined else 2, **sizes),
    ]  # fmt: skip


def _attention(
    spec: ModelSpec, sizes: dict[str, float], context: int, lean: bool, kernel: Kernel, fused: _Kernels
) -> list[Figure]:
    if spec.latent:
        return [_latent(spec, sizes)]
    heads, kv = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    sizes = {**sizes, "q": heads, "kv": kv, "heads": spec.heads}
    capped = spec.attention_softcap is not None
    scores_kept = (capped or kernel == "plain") and not lean
    copied = not lean and (spec.qk_norm != "none" or (spec.position == "rotary" and not fused.products))
    parts = []
    if scores_kept:  # keys and values copied out to every head, and what softmax leaves
        parts.append(figure("queries, keys, values", "bytes", "layers * tokens * a * 3 * q", _KEPT, **sizes))
        # tanh's result (a), the float32 softmax, and its 16-bit copy where products are in 16 bits
        score_bytes = (2 if capped else 1) * sizes["a"] + (4 if sizes["a"] < 4 else 0)
        formula = "layers * tokens * heads * context * score_bytes"
        parts.append(
            figure("attention scores", "bytes", formula, _KEPT, context=context, score_bytes=score_bytes, **sizes)
        )
    else:
        parts.append(figure("queries, keys, values", "bytes", "layers * tokens * a * (q + 2 * kv)", _KEPT, **sizes))
        formula = "layers * tokens * a * copies * (q + kv)"
        parts.append(figure("rotated queries and keys", "bytes", formula, _KEPT, copies=int(copied), **sizes))
        formula = "layers * tokens * 4 * heads"
        if not capped:
            parts.append(figure("softmax sums", "bytes", formula, "flash attention (Dao 2023, 2307.08691)", **sizes))
    if spec.qk_norm != "none" and not lean:
        copies = int(not fused.norms) + int(sizes["a"] < 4)  # its normalised form; its input in float32
        formula = "layers * tokens * (copies * 4 * (q + kv) + 4 * vectors)"
        vectors = spec.heads + spec.kv_heads if spec.qk_norm == "head" else 2
        parts.append(figure("query and key norms", "bytes", formula, _KEPT, copies=copies, vectors=vectors, **sizes))
    if not (capped and lean):  # which is no single operation, and recomputed
        parts.append(figure("attention's output", "bytes", "layers * tokens * a * q", _KEPT, **sizes))
    return parts


def _latent(spec: ModelSpec, sizes: dict[str, float]) -> Figure:
    latent = spec.latent
    assert latent is not None
    query = latent.plain_head_width + latent.rope_head_width
    formula = "layers * tokens * a * (2 * query_rank + 2 * kv_rank + heads * (3 * query + 3 * value))"
    return figure(
        "latent attention", "bytes", formula, _ESTIMATE, query_rank=latent.query_rank, kv_rank=latent.kv_rank,
        heads=spec.heads, query=query, value=latent.value_head_width, **sizes,
    )  # fmt: skip


def _mlp(spec: ModelSpec, sizes: dict[str, float], lean: bool, fused: _Kernels) -> list[Figure]:
    up = 2 if spec.mlp == "gated" else 1
    kept = (
        up if lean or (fused.products and gated_by_silu(spec)) else 2 * up
    )  # plain: up and its activation; gated: gate and up, silu(gate), their product
    mixed = min(expert_layers(spec), sizes["layers"])
    dense = {**sizes, "layers": sizes["layers"] - mixed, "kept": kept, "inner": spec.mlp_width}
    parts = [figure("MLP", "bytes", "layers * tokens * a * kept * inner", _KEPT, **dense)]
    if spec.experts and mixed:
        experts = spec.experts
        inner = experts.active * experts.width + experts.shared * (experts.shared_width or experts.width)
        formula = "layers * tokens * (a * (kept * inner + 2 * active * width) + 4 * experts)"
        inputs = {**dense, "layers": mixed, "inner": inner, "active": experts.active, "width": spec.width}
        parts.append(figure("experts", "bytes", formula, _ESTIMATE, experts=experts.count, **inputs))
    return parts


def _recurrent(spec: ModelSpec, sizes: dict[str, float], cpu: bool) -> Figure:
    inputs = {"layers": spec.layers, "width": spec.width, **sizes}
    if not cpu:
        source = "backpropagation through time keeps every step's gates, state and input; estimate"
        formula = "layers * tokens * (gates + 2) * width * a"
        return figure("every time step", "bytes", formula, source, gates=GATES[spec.kind], **inputs)
    wide = sizes["a"] >= 4
    source = "measured: what torch's LSTM, and nextword's GRU and RNN, keep on a CPU, with the first layer's input"
    formula = "tokens * width * (layers * kept + a)"
    return figure("every time step", "bytes", formula, source, kept=_ON_CPU[spec.kind][0 if wide else 1], **inputs)


def _final_norm(spec: ModelSpec, sizes: dict[str, float], fused: _Kernels) -> tuple[Figure, ...]:
    if spec.kind != "transformer":
        return (figure("input of the head", "bytes", "tokens * a * width", _KEPT, width=spec.width, **sizes),)
    copies = 2 if spec.norm == "rms" and not fused.norms else 1
    formula = "tokens * (copies * 4 * width + 4 + a * width)"
    return (
        figure("last norm and input of the head", "bytes", formula, _KEPT, copies=copies, width=spec.width, **sizes),
    )
