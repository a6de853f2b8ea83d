"""Gemma 2 (2408.00118) and 3 (2503.19786): norms on both sides, alternating windows."""

import math
from dataclasses import replace

from ..spec import ModelSpec, RopeSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Family, Key, Values, Windows, defaults
from .config import Config
from .names import gguf_names, llama_names
from .rope import rope_config, rope_from_config

_GGUF_KEYS = {
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def _read(config: Config, fields: Values) -> Values:
    return {
        "attention_scale": config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "embedding_scale": math.sqrt(fields["width"]),
        "attention_softcap": config.optional_number("attn_logit_softcapping"),
        "logit_softcap": config.optional_number("final_logit_softcapping"),
    }


def _write(spec: ModelSpec) -> Values:
    scale = spec.attention_scale or spec.head_width**-0.5
    return {
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": spec.attention_softcap,
        "final_logit_softcapping": spec.logit_softcap,
    }


def _gemma2(config: Config, fields: Values) -> Values:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # null in the file: none
    return _read(Config(caps | dict(config.values), config.what), fields)


def _gemma3(config: Config, fields: Values) -> Values:
    theta, parameters = config.number("rope_local_base_freq", 10_000.0), config.table("rope_parameters")
    separate = parameters is not None and "sliding_attention" in parameters.values
    return _read(config, fields) | {
        "rope": rope_from_config(config, 1_000_000.0, "full_attention"),
        "local_rope": rope_from_config(config, theta, "sliding_attention") if separate else RopeSpec(theta=theta),
    }


def _gemma3_keys(spec: ModelSpec) -> Values:
    local = spec.local_rope or spec.rope
    ropes = {"full_attention": rope_config(spec.rope), "sliding_attention": rope_config(local)}
    return _write(spec) | {"rope_local_base_freq": local.theta, "rope_parameters": ropes}


def _gguf(architecture: str, layers: int, scalar: int) -> GGUF:
    """The converter does not store query_pre_attn_scalar: it is the head width, or `scalar` with `layers`."""

    def read(metadata: Values) -> Values:
        largest = metadata.get(f"{architecture}.block_count") == layers
        width = metadata.get(f"{architecture}.attention.key_length", 256)
        return {"query_pre_attn_scalar": scalar if largest else width}

    return GGUF(architecture, gguf_names(), _GGUF_KEYS, read=read)


_NAMES = replace(
    llama_names(
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    norm_offset=1.0,
)
GEMMA2 = Family(
    "gemma2", "Gemma2ForCausalLM",
    defaults(LLAMA_KEYS, tied=True, kv_heads=4, head_width=256)
    | BIAS_KEYS | {"activation": Key("hidden_activation", "gelu_pytorch_tanh")},
    {"norm_offset": True, "norm_place": "both"},
    windows=Windows(4096, lambda config, fields, layer: layer % 2 == 0),
    read=_gemma2, write=_write,
    names=_NAMES,
    gguf=_gguf("gemma2", 46, 144),
)  # fmt: skip
_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"  # of multimodal folders
GEMMA3 = replace(
    GEMMA2, model_type="gemma3_text", architecture="Gemma3ForCausalLM", keys=defaults(GEMMA2.keys, context=131_072),
    fixed={**GEMMA2.fixed, "qk_norm": "head"}, theta=1_000_000.0, read=_gemma3, write=_gemma3_keys,
    windows=Windows(4096, lambda config, fields, layer: (layer + 1) % config.count("sliding_window_pattern", 6) != 0),
    names=replace(_NAMES, ignored=(*_NAMES.ignored, _VISION)), gguf=_gguf("gemma3", 62, 168),
    aliases=("gemma3",),  # the multimodal folder, of which the text part is read
)  # fmt: skip
FAMILIES = (GEMMA2, GEMMA3)
