"""Mixtral (2401.04088): Llama with a mixture of experts in every layer."""

from __future__ import annotations

from ..spec import ExpertsSpec, ModelSpec
from .common import GGUF, LLAMA_KEYS, Config, Family, Fields, Values, defaults, window_everywhere
from .names import gguf_names, llama_names


def _read(config: Config, fields: Fields) -> Fields:
    experts = ExpertsSpec(
        config.count("num_local_experts", 8), config.count("num_experts_per_tok", 2), fields["mlp_width"]
    )
    return {"experts": experts, "windows": window_everywhere(config, fields)}


def _write(spec: ModelSpec) -> Values:
    experts = spec.experts or ExpertsSpec(1, 1, spec.mlp_width)
    window = max(spec.windows, default=0) or None
    return {"num_local_experts": experts.count, "num_experts_per_tok": experts.active, "sliding_window": window}


MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=8, norm_eps=1e-5),
    theta=1_000_000.0,
    read=_read,
    write=_write,
    names=llama_names(
        experts__router="block_sparse_moe.gate",
        experts__up="block_sparse_moe.experts.{}.w1.weight block_sparse_moe.experts.{}.w3.weight",
        experts__down="block_sparse_moe.experts.{}.w2.weight",
    ),
    gguf=GGUF(
        "llama",
        gguf_names(paired=True),
        {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        requires="expert_count",
    ),
)
FAMILIES = (MIXTRAL,)
