"""GPT-2: learned positions, LayerNorm, biases, matrices stored as (in, out)."""

from __future__ import annotations

from typing import Any

from ...spec import ModelSpec
from .common import Entry, Family, activation_config, entry, norm, with_bias


def entries(spec: ModelSpec) -> list[Entry]:
    """Our parameters, each with the tensors that make it."""
    width = spec.width
    found = [entry("embedding.weight", "wte.weight", spec.vocabulary, width)]
    found += [entry("positions.weight", "wpe.weight", spec.context, width)]
    for layer in range(spec.layers):
        ours, theirs = f"blocks.{layer}", f"h.{layer}"
        found += norm(f"{ours}.attention_norm", f"{theirs}.ln_1", width, True)
        matrices = {
            "attention.qkv": ("attn.c_attn", 3 * width, width),
            "attention.out": ("attn.c_proj", width, width),
            "mlp.up": ("mlp.c_fc", spec.mlp_width, width),
            "mlp.down": ("mlp.c_proj", width, spec.mlp_width),
        }
        for mine, (name, out, inner) in matrices.items():
            found += with_bias(f"{ours}.{mine}", [f"{theirs}.{name}"], [out], inner, True, transposed=True)
        found += norm(f"{ours}.mlp_norm", f"{theirs}.ln_2", width, True)
    found += norm("norm", "ln_f", width, True)
    if not spec.tied:
        found += [entry("head.weight", "^lm_head.weight", spec.vocabulary, width)]
    return found


def config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of a GPT-2."""
    return {
        "vocab_size": spec.vocabulary,
        "n_embd": spec.width,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_inner": spec.mlp_width,
        "n_positions": spec.context,
        "layer_norm_epsilon": spec.norm_eps,
        "activation_function": {"gelu_pytorch_tanh": "gelu_new"}.get(activation_config(spec), "gelu"),
        "tie_word_embeddings": spec.tied,
    }


_CAUSAL_MASKS = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
GPT2 = Family("gpt2", "GPT2LMHeadModel", ("transformer.", ""), entries, config, (_CAUSAL_MASKS,))
