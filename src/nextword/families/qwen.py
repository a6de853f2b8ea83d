"""Qwen 2 and 2.5 (biases), Qwen 3 (norms of queries and keys), and their mixtures of experts."""

from __future__ import annotations

from ..base import UsageError
from ..spec import ExpertsSpec, ModelSpec
from .common import (
    BIAS_KEYS,
    GGUF,
    LLAMA_KEYS,
    Config,
    Family,
    Fields,
    Values,
    defaults,
    flag,
    head_width,
    layer_types,
    layer_windows,
)
from .names import gguf_names, llama_names


def _windows(config: Config, fields: Fields) -> Fields:
    """Only with use_sliding_window, and then from max_window_layers on."""
    if not config.flag("use_sliding_window", False):
        return {"windows": ()}
    first = config.count("max_window_layers", 28, least=0)
    return {"windows": layer_windows(config, fields, config.window(4096), lambda layer: layer >= first)}


def _window_keys(spec: ModelSpec) -> Values:
    types = layer_types(spec)
    use = types["sliding_window"] is not None
    return types | {"use_sliding_window": use, "max_window_layers": 0 if use else spec.layers}


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=32),
    {"attention_bias": True},
    read=_windows,
    write=_window_keys,
    names=llama_names(),
    gguf=GGUF("qwen2", gguf_names()),
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=32, head_width=128) | BIAS_KEYS,
    {"qk_norm": "head"},
    read=_windows,
    write=_window_keys,
    names=llama_names(),
    gguf=GGUF("qwen3", gguf_names()),
)


# ---- mixtures of experts


def _check_layers(config: Config) -> None:
    """Refuse configurations that keep plain MLPs in some layers: an ExpertsSpec has leading ones alone."""
    if config.values.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UsageError(
            f"{config.what}: mlp_only_layers and decoder_sparse_step other than 1 are not supported;"
            " all layers must be mixtures of experts"
        )


def _qwen2_moe(config: Config, fields: Fields) -> Fields:
    _check_layers(config)
    shared = config.count("shared_expert_intermediate_size", 5632, least=0)
    experts = ExpertsSpec(
        count=config.count("num_experts", 60),
        active=config.count("num_experts_per_tok", 4),
        width=config.count("moe_intermediate_size", 1408),
        normalize=config.flag("norm_topk_prob", False),
        shared=1 if shared else 0,
        shared_width=shared,
        shared_gate=bool(shared),
    )
    return {"experts": experts} | _windows(config, fields)


QWEN2_MOE = Family(  # planned only
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=16) | {"attention_bias": flag("qkv_bias", True)},
    read=_qwen2_moe,
)


def _qwen3_moe(config: Config, fields: Fields) -> Fields:
    _check_layers(config)
    experts = ExpertsSpec(
        count=config.count("num_experts", config.count("num_local_experts", 128)),  # transformers 5 writes the second
        active=config.count("num_experts_per_tok", 8),
        width=config.count("moe_intermediate_size", 768),
        normalize=config.flag("norm_topk_prob", False),
    )
    return {"experts": experts} | _windows(config, fields)


def _qwen3_moe_keys(spec: ModelSpec) -> Values:
    experts = spec.experts or ExpertsSpec(1, 1, spec.mlp_width)
    return _window_keys(spec) | {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalize,
    }


QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=4, head_width=head_width) | BIAS_KEYS,
    {"qk_norm": "head"},
    read=_qwen3_moe,
    write=_qwen3_moe_keys,
    names=llama_names(
        experts__router="mlp.gate",
        experts__up="mlp.experts.{}.gate_proj.weight mlp.experts.{}.up_proj.weight",
        experts__down="mlp.experts.{}.down_proj.weight",
    ),
    gguf=GGUF(
        "qwen3moe",
        gguf_names(),
        {
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        },
        read=lambda metadata: {"norm_topk_prob": True},  # llama.cpp always does
    ),
)
FAMILIES = (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE)
