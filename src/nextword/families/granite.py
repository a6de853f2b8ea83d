"""Granite 3: Llama with multipliers on embedding, attention, residual and logits."""

from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, MLP_BIAS, Family, Values
from .config import Config
from .names import gguf_names, llama_names


def _read(config: Config, fields: Values) -> Values:
    scales = {
        "embedding_scale": config.number("embedding_multiplier", 1.0),
        "residual_scale": config.number("residual_multiplier", 1.0),
        "logit_scale": 1 / config.number("logits_scaling", 1.0),
    }
    values: Values = {name: None if scale == 1 else scale for name, scale in scales.items()}
    return values | {"attention_scale": config.number("attention_multiplier", 1.0)}


def _write(spec: ModelSpec) -> Values:
    return {
        "embedding_multiplier": spec.embedding_scale or 1.0,
        "residual_multiplier": spec.residual_scale or 1.0,
        "logits_scaling": float(f"{1 / (spec.logit_scale or 1.0):.12g}"),  # 49, not 49.00000000000001
        "attention_multiplier": spec.attention_scale or spec.head_width**-0.5,
    }


GRANITE = Family(
    "granite", "GraniteForCausalLM", LLAMA_KEYS | BIAS_KEYS | MLP_BIAS, read=_read, write=_write, names=llama_names(),
    gguf=GGUF(
        "granite", gguf_names(paired=True),
        {
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
            "attention_multiplier": "attention.scale",
        },
    ),
)  # fmt: skip
FAMILIES = (GRANITE,)
