"""Qwen 2 and 2.5 (biases), Qwen 3 (norms of queries and keys), and their mixtures of experts."""

from dataclasses import replace

from ..base import UsageError
from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Family, Key, Values, Windows, defaults, head_width
from .config import Config
from .names import gguf_names, llama_names


def _slides(config: Config, fields: Values, layer: int) -> bool:
    return layer >= config.count("max_window_layers", 28, least=0)


def _write(spec: ModelSpec) -> Values:
    return {"max_window_layers": 0 if any(spec.windows) else spec.layers}


QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", defaults(LLAMA_KEYS, kv_heads=32), {"attention_bias": True}, write=_write,
    windows=Windows(4096, _slides, "use_sliding_window"), names=llama_names(), gguf=GGUF("qwen2", gguf_names()),
)  # fmt: skip
QWEN3 = replace(
    QWEN2, model_type="qwen3", architecture="Qwen3ForCausalLM", fixed={"qk_norm": "head"},
    keys=defaults(LLAMA_KEYS, kv_heads=32, head_width=128) | BIAS_KEYS, gguf=GGUF("qwen3", gguf_names()),
)  # fmt: skip


# ---- mixtures of experts

_EXPERTS = {
    "active": Key("num_experts_per_tok", 8, "expert_used_count"),
    "width": Key("moe_intermediate_size", 768, "expert_feed_forward_length"),
    "normalize": Key("norm_topk_prob", False),
}


def _check_layers(config: Config, fields: Values) -> Values:
    """Reject configurations with plain MLPs in some layers: an ExpertsSpec only has leading ones."""
    if config.values.get("mlp_only_layers") or config.count("decoder_sparse_step", 1) != 1:
        raise UsageError(
            f"{config.what}: mlp_only_layers and decoder_sparse_step other than 1 are not supported;"
            " all layers must be mixtures of experts"
        )
    return {}


def _qwen2_moe(config: Config, fields: Values) -> Values:
    width = config.count("shared_expert_intermediate_size", 5632, least=0)
    shared = {"shared": 1 if width else 0, "shared_width": width, "shared_gate": bool(width)}
    return {"experts": replace(fields["experts"], **shared)} | _check_layers(config, fields)


def _count(config: Config, fields: Values) -> int:
    return config.count("num_local_experts", 128)  # transformers 5's name


QWEN2_MOE = Family(
    "qwen2_moe", "Qwen2MoeForCausalLM", defaults(LLAMA_KEYS, kv_heads=16) | {"attention_bias": Key("qkv_bias", True)},
    experts=defaults(_EXPERTS, active=4, width=1408) | {"count": Key("num_experts", 60)}, read=_qwen2_moe,
    windows=QWEN2.windows, plan_only=True,
)  # fmt: skip
QWEN3_MOE = replace(
    QWEN3, model_type="qwen3_moe", architecture="Qwen3MoeForCausalLM", read=_check_layers,
    keys=defaults(LLAMA_KEYS, kv_heads=4, head_width=head_width) | BIAS_KEYS,
    experts=_EXPERTS | {"count": Key("num_experts", _count, "expert_count")},
    names=llama_names(
        experts__router="mlp.gate",
        experts__up="mlp.experts.{}.gate_proj.weight mlp.experts.{}.up_proj.weight",
        experts__down="mlp.experts.{}.down_proj.weight",
    ),
    gguf=GGUF("qwen3moe", gguf_names(), read=lambda metadata: {"norm_topk_prob": True}),  # as llama.cpp always does
)  # fmt: skip
FAMILIES = (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE)
