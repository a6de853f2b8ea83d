"""GPT-2: learned positions, LayerNorm, biases, matrices stored as (in, out)."""

from __future__ import annotations

from ..spec import MOST_LAYERS, ModelSpec
from .common import GGUF, MOST_HEADS, Config, Family, Fields, Values, activation, count, flag, head_width, number
from .names import GGUF_PLAIN, Names, gguf_names


def _read(config: Config, fields: Fields) -> Fields:
    width = config.count("n_inner", 4 * fields["width"])
    return {"kv_heads": fields["heads"], "head_width": head_width(config, fields), "mlp_width": width}


def _write(spec: ModelSpec) -> Values:
    name = {"gelu_tanh": "gelu_new"}.get(spec.activation, "gelu")
    return {"n_inner": spec.mlp_width, "activation_function": name}


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "vocabulary": count("vocab_size"),
        "width": count("n_embd", gguf="embedding_length"),
        "layers": count("n_layer", gguf="block_count", most=MOST_LAYERS),
        "context": count("n_positions", 1024, "context_length"),
        "tied": flag("tie_word_embeddings", True),
        "heads": count("n_head", gguf="attention.head_count", most=MOST_HEADS),
        "norm_eps": number("layer_norm_epsilon", 1e-5, "attention.layer_norm_epsilon"),
        "activation": activation("activation_function", "gelu_new"),
    },
    {
        "position": "learned",
        "norm": "layer",
        "mlp": "plain",
        "mlp_bias": True,
        "attention_bias": True,
        "attention_out_bias": True,
    },
    read=_read,
    write=_write,
    names=Names(
        {
            "embedding": "wte",
            "positions": "wpe",
            "norm": "ln_f",
            "head": "^lm_head",
            "attention_norm": "ln_1",
            "attention.qkv": "attn.c_attn",
            "attention.out": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        },
        layer="h.{}.",
        prefixes=("transformer.", ""),
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks
        transposed=("attention.qkv", "attention.out", "mlp.up", "mlp.down"),
    ),
    gguf=GGUF("gpt2", gguf_names(GGUF_PLAIN), {"n_inner": "feed_forward_length"}),
)
FAMILIES = (GPT2,)
