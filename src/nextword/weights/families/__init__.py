"""Families of open weights: which tensor is which, and what their config.json says."""

from ...base import UsageError
from ...base.errors import closest
from .common import Entry, Family, Piece
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .llama import GEMMA2, GEMMA3, LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2)
}
FAMILIES["gemma3"] = GEMMA3  # the multimodal folder, of which the text part is read

# GGUF's general.architecture -> the family whose folder it converts to
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
}


def family(model_type: str) -> Family:
    """The family of config.json's `model_type`. Raises UsageError for one that nextword cannot run."""
    if model_type not in FAMILIES:
        raise UsageError(
            f"model type {model_type!r} is not one nextword runs.{closest(model_type, FAMILIES)}"
            f" Runs: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "GGUF_ARCHITECTURES", "Entry", "Family", "Piece", "family"]
