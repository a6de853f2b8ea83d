"""Families of open weights: which tensor is which, and what their config.json says."""

import dataclasses

from ...base import UsageError
from ...base.errors import closest
from ...spec import ModelSpec
from .common import Entry, Family, Piece
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .llama import GEMMA2, GEMMA3, LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3
from .recurrent import GRU, LSTM, RNN

_TRANSFORMERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, OLMO2, GPT2, GPT_NEOX)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*_TRANSFORMERS, RNN, LSTM, GRU)}
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


def family_of(spec: ModelSpec) -> Family:
    """The first family whose config.json says all of `spec`, so that reading it back gives the same model.

    Raises UsageError that names what the nearest family cannot say.
    """
    from ...plan.configs import spec_from_config

    if spec.kind != "transformer":
        return FAMILIES[f"nextword-{spec.kind}"]
    wanted = spec if any(spec.windows) else dataclasses.replace(spec, windows=())
    names = [field.name for field in dataclasses.fields(wanted)]
    unsaid: dict[str, list[str]] = {}
    for each in _TRANSFORMERS:
        try:
            read = spec_from_config(each.config(wanted) | {"model_type": each.model_type})
        except UsageError:
            continue
        if read == wanted:
            return each
        unsaid[each.model_type] = [name for name in names if getattr(read, name) != getattr(wanted, name)]
    nearest = min(unsaid, key=lambda name: len(unsaid[name]), default="none")
    differing = ", ".join(f"{name} {getattr(wanted, name)!r}" for name in unsaid.get(nearest, ()))
    raise UsageError(f"no family of open weights holds this model. The nearest, {nearest}, cannot say: {differing}")


__all__ = ["FAMILIES", "GGUF_ARCHITECTURES", "Entry", "Family", "Piece", "family", "family_of"]
