"""DeepSeek-V2 (2405.04434) and V3 (2412.19437), for planning only: MLA, shared experts."""

from dataclasses import replace

from ..spec import LatentSpec
from .common import BIAS_KEYS, LLAMA_KEYS, Family, Key, Values, defaults
from .config import Config


def _read(config: Config, fields: Values) -> Values:
    latent = LatentSpec(
        kv_rank=config.count("kv_lora_rank", 512),
        query_rank=config.count("q_lora_rank", 0 if "q_lora_rank" in config.values else 1536, least=0),  # null: none
        rope_head_width=config.count("qk_rope_head_dim", 64),
        plain_head_width=config.count("qk_nope_head_dim", 128),
        value_head_width=config.count("v_head_dim", 128),
    )
    experts = replace(
        fields["experts"],
        shared=config.count("n_shared_experts", 0, least=0),
        dense_layers=config.count("first_k_dense_replace", 0, least=0),
        correction_bias=config.values.get("model_type") == "deepseek_v3",
    )
    width = latent.plain_head_width + latent.rope_head_width
    return {"latent": latent, "experts": experts, "kv_heads": fields["heads"], "head_width": width}


_KEYS = defaults(LLAMA_KEYS, head_width=1) | BIAS_KEYS
_EXPERTS = {
    "count": Key("n_routed_experts"),
    "active": Key("num_experts_per_tok"),
    "width": Key("moe_intermediate_size"),
    "normalize": Key("norm_topk_prob", False),
}
FAMILIES = tuple(
    Family(
        f"deepseek_{version}",
        f"Deepseek{version.upper()}ForCausalLM",
        _KEYS,
        experts=_EXPERTS,
        read=_read,
        plan_only=True,
    )
    for version in ("v2", "v3")
)
