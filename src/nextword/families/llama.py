"""Llama 1 to 3 and SmolLM2; Mistral, which has a window."""

from __future__ import annotations

from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Config, Family, Fields, Values, defaults, flag, window_everywhere
from .names import gguf_names, llama_names

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    LLAMA_KEYS | BIAS_KEYS | {"mlp_bias": flag("mlp_bias", False)},
    names=llama_names(),
    gguf=GGUF("llama", gguf_names(paired=True)),
)


def _windows(config: Config, fields: Fields) -> Fields:
    return {"windows": window_everywhere(config, fields, 4096)}


def _sliding_window(spec: ModelSpec) -> Values:
    return {"sliding_window": max(spec.windows, default=0) or None}


MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    defaults(LLAMA_KEYS, kv_heads=8),
    read=_windows,
    write=_sliding_window,
    names=llama_names(),
)
FAMILIES = (LLAMA, MISTRAL)
