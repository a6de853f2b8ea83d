"""GPT-NeoX and Pythia: parallel attention and MLP, part of each head rotates, query/key/value by head."""

from __future__ import annotations

from ..spec import MOST_LAYERS, ModelSpec
from .common import (
    BIAS_KEYS,
    GGUF,
    MOST_HEADS,
    Config,
    Family,
    Fields,
    Values,
    activation,
    count,
    defaults,
    flag,
    head_width,
    number,
)
from .names import GGUF_PLAIN, Names, gguf_names
from .rope import rope_from_config


def _read(config: Config, fields: Fields) -> Fields:
    fraction = config.number("partial_rotary_factor", config.number("rotary_pct", 0.25))
    rope = rope_from_config(config, config.number("rotary_emb_base", 10_000.0), fraction=fraction)
    return {"kv_heads": fields["heads"], "head_width": head_width(config, fields), "rope": rope}


def _write(spec: ModelSpec) -> Values:
    return {"rotary_pct": spec.rope.fraction, "rotary_emb_base": spec.rope.theta}


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    {
        "vocabulary": count("vocab_size"),
        "width": count("hidden_size", gguf="embedding_length"),
        "layers": count("num_hidden_layers", gguf="block_count", most=MOST_LAYERS),
        "context": count("max_position_embeddings", 2048, "context_length"),
        "tied": flag("tie_word_embeddings", False),
        "heads": count("num_attention_heads", gguf="attention.head_count", most=MOST_HEADS),
        "mlp_width": count("intermediate_size", gguf="feed_forward_length"),
        "norm_eps": number("layer_norm_eps", 1e-5, "attention.layer_norm_epsilon"),
        "activation": activation("hidden_act", "gelu"),
        "parallel": flag("use_parallel_residual", True),
        **defaults(BIAS_KEYS, attention_bias=True, attention_out_bias=True),
    },
    {"norm": "layer", "mlp": "plain", "mlp_bias": True},
    read=_read,
    write=_write,
    names=Names(
        {
            "embedding": "embed_in",
            "norm": "final_layer_norm",
            "head": "^embed_out",
            "attention_norm": "input_layernorm",
            "attention.qkv": "attention.query_key_value",
            "attention.out": "attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
        prefixes=("gpt_neox.", ""),
        ignored=(  # causal masks, and the frequencies of rotary positions
            r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",
            r"(gpt_neox\.)?(layers\.\d+\.attention\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)",
        ),
        qkv_by_head=True,
    ),
    gguf=GGUF(
        "gptneox",
        gguf_names(GGUF_PLAIN),
        {"use_parallel_residual": "use_parallel_residual", "rotary_emb_base": "rope.freq_base"},
        partial_rotary=True,
    ),
)
FAMILIES = (GPT_NEOX,)
