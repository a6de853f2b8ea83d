"""Phi-3 and Phi-4 (2404.14219): Llama with joined matrices, and longrope."""

from ..spec import ModelSpec
from .common import GGUF, LLAMA_KEYS, Family, Values, Windows, defaults
from .config import Config
from .names import gguf_names, llama_names
from .rope import rope_from_config


def _read(config: Config, fields: Values) -> Values:
    return {"rope": rope_from_config(config, fraction=config.number("partial_rotary_factor", 1.0))}


def _write(spec: ModelSpec) -> Values:
    return {
        "partial_rotary_factor": spec.rope.fraction,
        "original_max_position_embeddings": spec.rope.original_context or spec.context,
    }


PHI3 = Family(
    "phi3", "Phi3ForCausalLM", defaults(LLAMA_KEYS, context=4096, norm_eps=1e-5), windows=Windows(),
    read=_read, write=_write,
    names=llama_names(attention__qkv="self_attn.qkv_proj", mlp__up="mlp.gate_up_proj"),
    gguf=GGUF(
        "phi3", gguf_names({"attention.qkv": "attn_qkv", "mlp.up": "ffn_up"}),
        {
            "sliding_window": "attention.sliding_window",
            "original_max_position_embeddings": "rope.scaling.original_context_length",
        },
        partial_rotary=True, factors="longrope",
    ),
)  # fmt: skip
FAMILIES = (PHI3,)
