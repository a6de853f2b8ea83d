"""GPT-NeoX and Pythia: parallel attention and MLP, part of each head rotates, query/key/value by head."""

from __future__ import annotations

from typing import Any

from ...spec import ModelSpec
from .common import Entry, Family, activation_config, entry, norm, rope_config, with_bias


def entries(spec: ModelSpec) -> list[Entry]:
    """Our parameters, each with the tensors that make it."""
    width = spec.width
    found = [entry("embedding.weight", "embed_in.weight", spec.vocabulary, width)]
    for layer in range(spec.layers):
        ours, theirs = f"blocks.{layer}", f"layers.{layer}"
        qkv = [f"{theirs}.attention.query_key_value"]
        found += with_bias(
            f"{ours}.attention.qkv", qkv, [3 * width], width, spec.attention_bias, order="qkv_by_head", heads=spec.heads
        )
        out = [f"{theirs}.attention.dense"]
        found += with_bias(f"{ours}.attention.out", out, [width], width, spec.attention_out_bias)
        found += with_bias(f"{ours}.mlp.up", [f"{theirs}.mlp.dense_h_to_4h"], [spec.mlp_width], width, spec.mlp_bias)
        found += with_bias(f"{ours}.mlp.down", [f"{theirs}.mlp.dense_4h_to_h"], [width], spec.mlp_width, spec.mlp_bias)
        found += norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm", width, True)
        found += norm(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", width, True)
    found += norm("norm", "final_layer_norm", width, True)
    if not spec.tied:
        found += [entry("head.weight", "^embed_out.weight", spec.vocabulary, width)]
    return found


def config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of a GPT-NeoX."""
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.context,
        "layer_norm_eps": spec.norm_eps,
        "hidden_act": activation_config(spec),
        "use_parallel_residual": spec.parallel,
        "attention_bias": spec.attention_bias,
        "rotary_pct": spec.rope.fraction,
        "rotary_emb_base": spec.rope.theta,
        "rope_parameters": rope_config(spec.rope),
        "tie_word_embeddings": spec.tied,
    }


_IGNORED = (  # causal masks, and the frequencies of rotary positions
    r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",
    r"(gpt_neox\.)?(layers\.\d+\.attention\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)",
)
GPT_NEOX = Family("gpt_neox", "GPTNeoXForCausalLM", ("gpt_neox.", ""), entries, config, _IGNORED)
