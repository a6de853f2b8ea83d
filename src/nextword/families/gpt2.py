"""GPT-2: learned positions, LayerNorm, biases, matrices stored as (in, out)."""

from ..spec import MOST_LAYERS, ModelSpec
from .common import GGUF, Family, Key, Values
from .names import GGUF_PLAIN, Names, gguf_names


def _write(spec: ModelSpec) -> Values:
    return {"activation_function": "gelu_new"} if spec.activation == "gelu_tanh" else {}


GPT2 = Family(
    "gpt2", "GPT2LMHeadModel",
    {
        "vocabulary": Key("vocab_size"),
        "width": Key("n_embd", gguf="embedding_length"),
        "layers": Key("n_layer", gguf="block_count", most=MOST_LAYERS),
        "context": Key("n_positions", 1024, "context_length"),
        "tied": Key("tie_word_embeddings", True),
        "heads": Key("n_head", gguf="attention.head_count"),
        "mlp_width": Key("n_inner", lambda config, fields: 4 * fields["width"], "feed_forward_length"),
        "norm_eps": Key("layer_norm_epsilon", 1e-5, "attention.layer_norm_epsilon"),
        "activation": Key("activation_function", "gelu_new"),
    },
    {
        "position": "learned", "norm": "layer", "mlp": "plain", "mlp_bias": True, "attention_bias": True,
        "attention_out_bias": True,
    },
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
    gguf=GGUF("gpt2", gguf_names(GGUF_PLAIN)),
)  # fmt: skip
FAMILIES = (GPT2,)
