"""OLMo 2 (2501.00656): norms after attention and MLP, and over all queries and all keys."""

from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, Family, defaults
from .names import gguf_names, llama_names

OLMO2 = Family(
    "olmo2", "Olmo2ForCausalLM", defaults(LLAMA_KEYS, norm_eps=1e-5) | BIAS_KEYS,
    {"norm_place": "after", "qk_norm": "full"},
    names=llama_names(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm"),
    gguf=GGUF("olmo2", gguf_names()),
)  # fmt: skip
FAMILIES = (OLMO2,)
