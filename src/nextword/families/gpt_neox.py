"""GPT-NeoX and Pythia: parallel attention and MLP, partial rope, query/key/value by head."""

from ..spec import ModelSpec
from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Family, Key, Values, defaults
from .config import Config
from .names import GGUF_PLAIN, Names, gguf_names
from .rope import rope_from_config


def _read(config: Config, fields: Values) -> Values:
    fraction = config.number("partial_rotary_factor", config.number("rotary_pct", 0.25))
    return {"rope": rope_from_config(config, config.number("rotary_emb_base", 10_000.0), fraction=fraction)}


def _write(spec: ModelSpec) -> Values:
    return {"rotary_pct": spec.rope.fraction, "rotary_emb_base": spec.rope.theta}


_SHARED = ("vocabulary", "width", "layers", "context", "tied", "heads", "mlp_width")
GPT_NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM",
    {
        **{name: LLAMA_KEYS[name] for name in _SHARED},
        **defaults(BIAS_KEYS, attention_bias=True, attention_out_bias=True),
        "norm_eps": Key("layer_norm_eps", 1e-5, "attention.layer_norm_epsilon"),
        "activation": Key("hidden_act", "gelu"),
        "parallel": Key("use_parallel_residual", True, "use_parallel_residual"),
    },
    {"norm": "layer", "mlp": "plain", "mlp_bias": True},
    read=_read, write=_write,
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
    gguf=GGUF("gptneox", gguf_names(GGUF_PLAIN), {"rotary_emb_base": "rope.freq_base"}, partial_rotary=True),
)  # fmt: skip
FAMILIES = (GPT_NEOX,)
