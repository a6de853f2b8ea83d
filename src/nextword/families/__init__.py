"""One file per model family: config.json ↔ ModelSpec ↔ GGUF metadata, and tensor names.

To add a family, write its file and name it here, and add a row to tests/family_cases.py. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from ..spec import ModelSpec
from . import deepseek, gemma, gpt2, gpt_neox, gpt_oss, granite, llama, mixtral, olmo2, phi3, qwen, recurrent, smollm3
from .common import GGUF, Family, checked
from .gpt_oss import experts_in_4_bits
from .names import FileTensor, Names, Parameter

# A model in memory is written as the first family that can express it.
_MODULES = (
    llama, qwen, gemma, olmo2, gpt2, gpt_neox, phi3, smollm3, granite, mixtral, gpt_oss, recurrent, deepseek
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    name: family for module in _MODULES for family in module.FAMILIES for name in (family.model_type, *family.aliases)
}
LOADABLE: dict[str, Family] = {name: family for name, family in FAMILIES.items() if not family.plan_only}


def spec_from_config(config: Mapping[str, Any], name: str = "config.json") -> ModelSpec:
    """The ModelSpec of a Hugging Face config.json.

    Missing keys take the family's defaults in transformers. Raises UsageError that names the key
    for missing required keys, values out of range and unknown model types; `name` is the file's.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        problem = f"has model_type {model_type!r}, which nextword does not know" if model_type else "has no model_type"
        near = closest(str(model_type), FAMILIES)
        raise UsageError(f"{name} {problem}.{near} Known: {', '.join(FAMILIES)}")
    if isinstance(config.get("text_config"), Mapping):  # a multimodal model: its text part
        config = {**config["text_config"], "model_type": model_type}
    return FAMILIES[model_type].spec(config, name)


def loadable_family(model_type: str) -> Family:
    """The family of config.json's `model_type`. Raises UsageError for one that nextword cannot run."""
    if model_type not in LOADABLE:
        problem = "can be planned, but not run" if model_type in FAMILIES else "is not supported"
        near = closest(model_type, LOADABLE)
        raise UsageError(f"model type {model_type!r} {problem}.{near} Supported: {', '.join(LOADABLE)}")
    return LOADABLE[model_type]


def family_of(spec: ModelSpec) -> Family:
    """The first family whose config.json expresses all of `spec`, so that reading it back gives the same model.

    Raises UsageError that names what the closest family cannot express.
    """
    if spec.kind != "transformer":
        return FAMILIES[f"nextword-{spec.kind}"]
    wanted = without_empty_windows(spec)
    names = [field.name for field in dataclasses.fields(wanted)]
    unsaid: dict[str, list[str]] = {}
    for family in LOADABLE.values():
        try:
            read = family.spec(family.config(wanted), "config.json")
        except (UsageError, OverflowError):
            continue
        if read == wanted:
            return family
        unsaid[family.model_type] = [name for name in names if getattr(read, name) != getattr(wanted, name)]
    nearest = min(unsaid, key=lambda name: len(unsaid[name]), default="none")
    differing = ", ".join(f"{name} {getattr(wanted, name)!r}" for name in unsaid.get(nearest, ()))
    raise UsageError(f"no known family can express this model. The closest, {nearest}, cannot express: {differing}")


def without_empty_windows(spec: ModelSpec) -> ModelSpec:
    """`spec`, with () for windows of 0 in all layers."""
    return spec if any(spec.windows) else dataclasses.replace(spec, windows=())


def spec_from_dict(data: Mapping[str, Any], name: str) -> ModelSpec:
    """The ModelSpec from `to_dict`'s output. Raises UsageError that names the key; `name` is the file's."""
    try:
        spec = ModelSpec.from_dict(data)
    except UsageError as error:
        raise UsageError(f"{name} is not a model specification: {error}") from None
    return checked(spec, name)


__all__ = [
    "FAMILIES",
    "GGUF",
    "LOADABLE",
    "Family",
    "FileTensor",
    "Names",
    "Parameter",
    "experts_in_4_bits",
    "family_of",
    "loadable_family",
    "spec_from_config",
    "spec_from_dict",
    "without_empty_windows",
]
