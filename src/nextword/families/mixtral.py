"""Mixtral (2401.04088): Llama with a mixture of experts in every layer."""

from .common import GGUF, LLAMA_KEYS, Family, Key, Windows, defaults
from .names import gguf_names, llama_names

MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM", defaults(LLAMA_KEYS, kv_heads=8, norm_eps=1e-5), theta=1_000_000.0,
    experts={
        "count": Key("num_local_experts", 8, "expert_count"),
        "active": Key("num_experts_per_tok", 2, "expert_used_count"),
        "width": Key("intermediate_size"),
    },
    windows=Windows(),
    names=llama_names(
        experts__router="block_sparse_moe.gate",
        experts__up="block_sparse_moe.experts.{}.w1.weight block_sparse_moe.experts.{}.w3.weight",
        experts__down="block_sparse_moe.experts.{}.w2.weight",
    ),
    gguf=GGUF("llama", gguf_names(paired=True), requires="expert_count"),
)  # fmt: skip
FAMILIES = (MIXTRAL,)
