"""Gemma 2 (2408.00118) and Gemma 3 (2503.19786): norms on both sides, a scaled embedding, alternating windows."""

from __future__ import annotations

import math
from dataclasses import replace

from ..spec import ModelSpec, RopeSpec
from .common import (
    BIAS_KEYS,
    GGUF,
    LLAMA_KEYS,
    Config,
    Family,
    Fields,
    Values,
    defaults,
    layer_types,
    layer_windows,
    written_activation,
)
from .names import gguf_names, llama_names
from .rope import rope_config, rope_from_config

_KEYS = defaults(LLAMA_KEYS, tied=True, kv_heads=4, head_width=256) | BIAS_KEYS
del _KEYS["activation"]
_FIXED = {"norm_offset": True, "norm_place": "both"}
_NAMES = replace(
    llama_names(
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    norm_offset=1.0,
)
_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"  # of the folders that also see
_GGUF_KEYS = {
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def _read(config: Config, fields: Fields) -> Fields:
    default = config.values.get("hidden_act") or "gelu_pytorch_tanh"
    return {
        "attention_scale": config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "activation": config.activation("hidden_activation", default),
        "embedding_scale": math.sqrt(fields["width"]),
    }


def _cap(config: Config, key: str, default: float | None) -> float | None:
    """A cap of logits; null in the file is none."""
    return config.optional_number(key) if key in config.values else default


def _gemma2(config: Config, fields: Fields) -> Fields:
    return _read(config, fields) | {
        "windows": layer_windows(config, fields, config.window(4096), lambda layer: layer % 2 == 0),
        "attention_softcap": _cap(config, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(config, "final_logit_softcapping", 30.0),
    }


def _gemma2_keys(spec: ModelSpec) -> Values:
    scale = spec.attention_scale or spec.head_width**-0.5
    return layer_types(spec) | {
        "hidden_activation": written_activation(spec),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
    }


def _gemma3(config: Config, fields: Fields) -> Fields:
    period = config.count("sliding_window_pattern", 6)
    theta = config.number("rope_local_base_freq", 10_000.0)
    parameters = config.table("rope_parameters")
    local = RopeSpec(theta=theta)
    if parameters is not None and "sliding_attention" in parameters.values:
        local = rope_from_config(config, theta, "sliding_attention")
    return _read(config, fields) | {
        "windows": layer_windows(config, fields, config.window(4096), lambda layer: (layer + 1) % period != 0),
        "attention_softcap": _cap(config, "attn_logit_softcapping", None),
        "logit_softcap": _cap(config, "final_logit_softcapping", None),
        "rope": rope_from_config(config, 1_000_000.0, "full_attention"),
        "local_rope": local,
    }


def _gemma3_keys(spec: ModelSpec) -> Values:
    local = spec.local_rope or spec.rope
    ropes = {"full_attention": rope_config(spec.rope), "sliding_attention": rope_config(local)}
    return _gemma2_keys(spec) | {"rope_local_base_freq": local.theta, "rope_parameters": ropes}


def _gguf(architecture: str, layers: int, scalar: int) -> GGUF:
    """The converter does not store query_pre_attn_scalar: it is the width of a head, or `scalar` with `layers`."""

    def read(metadata: Values) -> Values:
        if metadata.get(f"{architecture}.block_count") == layers:
            return {"query_pre_attn_scalar": scalar}
        return {"query_pre_attn_scalar": metadata.get(f"{architecture}.attention.key_length", 256)}

    return GGUF(architecture, gguf_names(), _GGUF_KEYS, read=read)


GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    _KEYS,
    _FIXED,
    read=_gemma2,
    write=_gemma2_keys,
    names=_NAMES,
    gguf=_gguf("gemma2", 46, 144),  # 27B
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    defaults(_KEYS, context=131_072),
    _FIXED | {"qk_norm": "head"},
    theta=1_000_000.0,
    read=_gemma3,
    write=_gemma3_keys,
    names=replace(_NAMES, ignored=(*_NAMES.ignored, _VISION)),
    gguf=_gguf("gemma3", 62, 168),  # 27B
)
GEMMA3_MULTIMODAL = replace(GEMMA3, model_type="gemma3", gguf=None)  # a folder of which the text part is read
FAMILIES = (GEMMA2, GEMMA3, GEMMA3_MULTIMODAL)
