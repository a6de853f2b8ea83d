"""OpenAI's gpt-oss (2508.10925): experts with biases, attention sinks, alternating windows.

The published folders store the experts' matrices in MXFP4, as `*_blocks` and `*_scales`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..base import UsageError
from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Family, Key, Values, Windows, defaults
from .config import Config
from .names import gguf_names, llama_names
from .rope import rope_from_config, scaling_from_gguf

_ROPE = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_CLAMPED = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}


def _read(config: Config, fields: Values) -> Values:
    for key, value in _CLAMPED.items():
        if config.number(key, value) != value:
            raise UsageError(f"{config.what}: {key} is {config.values[key]!r}; nextword only supports {value}")
    if not config.values.get("rope_parameters") and not config.values.get("rope_scaling"):
        config = Config(dict(config.values) | {"rope_scaling": _ROPE}, config.what)
    return {"experts": replace(fields["experts"], bias=True), "rope": rope_from_config(config, 150_000.0)}


def _write(spec: ModelSpec) -> Values:
    return {"hidden_act": "silu", **_CLAMPED}


def _exact_yarn(metadata: Values) -> Values:
    """The ends of yarn's band are not rounded, which GGUF cannot express."""
    return {"rope_scaling": (scaling_from_gguf(metadata, "gpt-oss") or {}) | {"truncate": False}}


def experts_in_4_bits(config: Mapping[str, Any]) -> bool:
    """Whether the published weights have the experts' matrices in MXFP4 and the rest in bf16, as in gpt-oss."""
    how = config.get("quantization_config")
    return isinstance(how, Mapping) and how.get("quant_method") == "mxfp4"


_LLAMA = defaults(LLAMA_KEYS, layers=36, context=131_072, kv_heads=8, head_width=64, norm_eps=1e-5)
GPT_OSS = Family(
    "gpt_oss", "GptOssForCausalLM",
    {name: key for name, key in _LLAMA.items() if name != "activation"}
    | defaults(BIAS_KEYS, attention_bias=True, attention_out_bias=True),
    {"attention_sinks": True, "activation": "swiglu_clamped"},
    experts={
        "count": Key("num_local_experts", 128, "expert_count"),
        "active": Key("num_experts_per_tok", 4, "expert_used_count"),
        "width": Key("intermediate_size"),
    },
    windows=Windows(128, lambda config, fields, layer: layer % 2 == 0),
    read=_read, write=_write,
    names=replace(
        llama_names(
            attention__sinks="self_attn.sinks",
            experts__router="mlp.router",
            experts__up="mlp.experts.gate_up_proj",
            experts__up_bias="mlp.experts.gate_up_proj_bias",
            experts__down="mlp.experts.down_proj",
            experts__down_bias="mlp.experts.down_proj_bias",
        ),
        transposed=("experts.up", "experts.down"),
        paired=("experts.up",),
    ),
    gguf=GGUF(
        "gpt-oss", gguf_names({"mlp_norm": "post_attention_norm"}), {"sliding_window": "attention.sliding_window"},
        read=_exact_yarn, write=lambda spec: {"expert_feed_forward_length": spec.mlp_width},
    ),
)  # fmt: skip
FAMILIES = (GPT_OSS,)
