"""Llama 1-3, Mistral, SmolLM2, Qwen 2 and 3, Gemma 2 and 3, OLMo 2: one naming, different norms."""

from __future__ import annotations

from typing import Any

from ...spec import ModelSpec
from .common import Entry, Family, activation_config, entry, norm, rope_config, with_bias

# What transformers calls the norms of a block, by where the spec puts them.
NORMS = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
}


def entries(spec: ModelSpec) -> list[Entry]:
    """Our parameters, each with the tensors that make it."""
    offset = 1.0 if spec.norm_offset else 0.0
    queries, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    found = [entry("embedding.weight", "embed_tokens.weight", spec.vocabulary, spec.width)]
    for layer in range(spec.layers):
        ours, theirs = f"blocks.{layer}", f"layers.{layer}"
        names = [f"{theirs}.self_attn.{part}_proj" for part in "qkv"]
        found += with_bias(f"{ours}.attention.qkv", names, (queries, keys, keys), spec.width, spec.attention_bias)
        out = [f"{theirs}.self_attn.o_proj"]
        found += with_bias(f"{ours}.attention.out", out, (spec.width,), queries, spec.attention_out_bias)
        if spec.qk_norm != "none":
            widths = (spec.head_width, spec.head_width) if spec.qk_norm == "head" else (queries, keys)
            found += norm(f"{ours}.attention.query_norm", f"{theirs}.self_attn.q_norm", widths[0], False, offset)
            found += norm(f"{ours}.attention.key_norm", f"{theirs}.self_attn.k_norm", widths[1], False, offset)
        for mine, name in NORMS[spec.norm_place].items():
            found += norm(f"{ours}.{mine}", f"{theirs}.{name}", spec.width, False, offset)
        up = [f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj"]
        found += with_bias(f"{ours}.mlp.up", up, (spec.mlp_width,) * 2, spec.width, spec.mlp_bias)
        down = [f"{theirs}.mlp.down_proj"]
        found += with_bias(f"{ours}.mlp.down", down, (spec.width,), spec.mlp_width, spec.mlp_bias)
    found += norm("norm", "norm", spec.width, False, offset)
    if not spec.tied:
        found += [entry("head.weight", "^lm_head.weight", spec.vocabulary, spec.width)]
    return found


def config(spec: ModelSpec) -> dict[str, Any]:
    """The part of config.json that all of them share."""
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_width,
        "intermediate_size": spec.mlp_width,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": activation_config(spec),
        "tie_word_embeddings": spec.tied,
        "rope_theta": spec.rope.theta,
        "rope_parameters": rope_config(spec.rope),
    }


def _llama_config(spec: ModelSpec) -> dict[str, Any]:
    return config(spec) | {"attention_bias": spec.attention_bias, "mlp_bias": spec.mlp_bias}


def _mistral_config(spec: ModelSpec) -> dict[str, Any]:
    return config(spec) | {"sliding_window": spec.windows[0] if spec.windows else None}


def _layer_types(spec: ModelSpec) -> dict[str, Any]:
    window = max(spec.windows, default=0)
    types = ["sliding_attention" if spec.window(layer) else "full_attention" for layer in range(spec.layers)]
    return {"sliding_window": window or None, "layer_types": types}


def _qwen2_config(spec: ModelSpec) -> dict[str, Any]:
    types = _layer_types(spec)
    use = bool(types["sliding_window"])
    return config(spec) | types | {"use_sliding_window": use, "max_window_layers": 0 if use else spec.layers}


def _qwen3_config(spec: ModelSpec) -> dict[str, Any]:
    return _qwen2_config(spec) | {"attention_bias": spec.attention_bias}


def _gemma2_config(spec: ModelSpec) -> dict[str, Any]:
    scale = spec.attention_scale or spec.head_width**-0.5
    values = config(spec) | _layer_types(spec)
    del values["hidden_act"]
    return values | {
        "hidden_activation": activation_config(spec),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": spec.attention_bias,
    }


def _gemma3_config(spec: ModelSpec) -> dict[str, Any]:
    local = spec.local_rope or spec.rope
    ropes = {"full_attention": rope_config(spec.rope), "sliding_attention": rope_config(local)}
    return _gemma2_config(spec) | {"rope_local_base_freq": local.theta, "rope_parameters": ropes}


_ROTARY = (r"(.*\.)?rotary_emb(_local)?\.(inv_freq|cos_cached|sin_cached)",)  # frequencies, as old versions saved them
_PICTURES = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)  # of the folders that also see
_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")

LLAMA = Family("llama", "LlamaForCausalLM", _PREFIXES, entries, _llama_config, _ROTARY)
MISTRAL = Family("mistral", "MistralForCausalLM", _PREFIXES, entries, _mistral_config, _ROTARY)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _PREFIXES, entries, _qwen2_config, _ROTARY)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _PREFIXES, entries, _qwen3_config, _ROTARY)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _PREFIXES, entries, _gemma2_config, _ROTARY)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _PREFIXES, entries, _gemma3_config, (*_ROTARY, *_PICTURES))
OLMO2 = Family("olmo2", "Olmo2ForCausalLM", _PREFIXES, entries, _qwen3_config, _ROTARY)
