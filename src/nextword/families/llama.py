"""Llama 1 to 3 and SmolLM2; Mistral, which has a window."""

from .common import BIAS_KEYS, GGUF, LLAMA_KEYS, MLP_BIAS, Family, Windows, defaults
from .names import gguf_names, llama_names

LLAMA = Family(
    "llama", "LlamaForCausalLM", LLAMA_KEYS | BIAS_KEYS | MLP_BIAS, names=llama_names(),
    gguf=GGUF("llama", gguf_names(paired=True), factors="llama3"),
)  # fmt: skip
MISTRAL = Family(
    "mistral", "MistralForCausalLM", defaults(LLAMA_KEYS, kv_heads=8), windows=Windows(4096), names=llama_names()
)
FAMILIES = (LLAMA, MISTRAL)
