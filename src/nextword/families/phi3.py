"""Phi-3 and Phi-4 (2404.14219): Llama with joined matrices, and contexts stretched by longrope."""

from __future__ import annotations

from ..spec import ModelSpec
from .common import GGUF, LLAMA_KEYS, Config, Family, Fields, Values, defaults, window_everywhere
from .names import gguf_names, llama_names
from .rope import rope_from_config


def _read(config: Config, fields: Fields) -> Fields:
    rope = rope_from_config(config, fraction=config.number("partial_rotary_factor", 1.0))
    return {"rope": rope, "windows": window_everywhere(config, fields)}


def _write(spec: ModelSpec) -> Values:
    return {
        "sliding_window": max(spec.windows, default=0) or None,
        "partial_rotary_factor": spec.rope.fraction,
        "original_max_position_embeddings": spec.rope.original_context or spec.context,
    }


PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    defaults(LLAMA_KEYS, context=4096, norm_eps=1e-5),
    read=_read,
    write=_write,
    names=llama_names(attention__qkv="self_attn.qkv_proj", mlp__up="mlp.gate_up_proj"),
    gguf=GGUF(
        "phi3",
        gguf_names({"attention.qkv": "attn_qkv", "mlp.up": "ffn_up"}),
        {
            "sliding_window": "attention.sliding_window",
            "original_max_position_embeddings": "rope.scaling.original_context_length",
        },
        partial_rotary=True,
        longrope=True,
    ),
)
FAMILIES = (PHI3,)
