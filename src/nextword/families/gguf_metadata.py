"""GGUF metadata ↔ ModelSpec, through the keys of config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..base import UsageError
from ..base.errors import closest
from ..spec import ModelSpec, RopeSpec
from . import FAMILIES, without_empty_windows
from .common import GGUF, Family, Values
from .rope import scaling_from_gguf, scaling_to_gguf

_WITH_GGUF = [(family, family.gguf) for family in FAMILIES.values() if family.gguf]


def family_of_gguf(metadata: Mapping[str, Any], name: str = "the GGUF file") -> tuple[Family, GGUF]:
    """The family of a GGUF file from its metadata. Raises UsageError for an unknown architecture."""
    architecture = str(metadata.get("general.architecture", ""))
    shared = [(family, gguf) for family, gguf in _WITH_GGUF if gguf.architecture == architecture]
    if not shared:
        known = sorted({gguf.architecture for _, gguf in _WITH_GGUF})
        raise UsageError(
            f"{name}: architecture {architecture!r} is not supported.{closest(architecture, known)}"
            f" Supported: {', '.join(known)}"
        )
    special = [pair for pair in shared if metadata.get(f"{architecture}.{pair[1].requires}")]
    return (special or shared)[0]


def spec_from_gguf_metadata(metadata: Mapping[str, Any], tied: bool, name: str = "the GGUF file") -> ModelSpec:
    """The ModelSpec of a GGUF file's metadata; `tied` if it has no `output.weight`. `name` is the file's."""
    family, gguf = family_of_gguf(metadata, name)
    keys = {key: f"{gguf.architecture}.{theirs}" for key, theirs in _keys(family, gguf).items()}
    config = {key: metadata[theirs] for key, theirs in keys.items() if theirs in metadata}
    config |= {"vocab_size": _vocabulary(metadata, gguf.architecture), "tie_word_embeddings": tied}
    if scaling := scaling_from_gguf(metadata, gguf.architecture):
        config["rope_scaling"] = scaling
    if gguf.partial_rotary:
        config["partial_rotary_factor"] = _rotating_fraction(metadata, gguf.architecture)
    spec = family.spec(config | gguf.read(dict(metadata)), name)
    key, width = f"{gguf.architecture}.rope.dimension_count", spec.head_width
    if spec.position == "rotary" and not gguf.partial_rotary and metadata.get(key, width) != width:
        raise UsageError(f"{name}: {key} is {metadata[key]!r}; it must be {width}, the head width")
    return spec


def gguf_metadata(spec: ModelSpec) -> tuple[GGUF, Values] | None:
    """The metadata of the first family whose metadata reads back as `spec`; None if there is no such family.

    Llama 3's and longrope's scaling is not included: it is stored as tensors.
    """
    spec = without_empty_windows(spec)
    factors = spec.rope.scaling if spec.rope.scaling in ("llama3", "longrope") else ""
    wanted = replace(spec, rope=RopeSpec(spec.rope.theta, spec.rope.fraction)) if factors else spec
    for family, gguf in _WITH_GGUF:
        if factors and factors != gguf.factors:
            continue
        try:
            values = _metadata(family, gguf, spec)
            if spec_from_gguf_metadata(values, tied=spec.tied) == wanted:
                return gguf, values
        except (UsageError, OverflowError):  # a shape that this family cannot have
            continue
    return None


def _metadata(family: Family, gguf: GGUF, spec: ModelSpec) -> Values:
    config = family.config(spec)
    values = {key: config[name] for name, key in _keys(family, gguf).items() if config.get(name) is not None}
    values |= {"vocab_size": spec.vocabulary} | scaling_to_gguf(spec) | gguf.write(spec)
    if spec.position == "rotary":
        values["rope.dimension_count"] = int(spec.head_width * spec.rope.fraction)
    if "attention.key_length" in values:
        values["attention.value_length"] = spec.head_width
    named = {f"{gguf.architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": gguf.architecture} | named


def _keys(family: Family, gguf: GGUF) -> dict[str, str]:
    """config.json's keys, and their names in the metadata."""
    keys = (*family.keys.values(), *family.experts.values())
    return {"rope_theta": "rope.freq_base"} | {key.name: key.gguf for key in keys if key.gguf} | dict(gguf.keys)


def _vocabulary(metadata: Mapping[str, Any], architecture: str) -> Any:
    """The vocabulary size, as stated and as listed."""
    stated, tokens = metadata.get(f"{architecture}.vocab_size"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return stated
    if stated is not None and stated != len(tokens):
        raise UsageError(f"{architecture}.vocab_size is {stated!r}, but the file lists {len(tokens)} tokens")
    return len(tokens)


def _rotating_fraction(metadata: Mapping[str, Any], architecture: str) -> float:
    """The share of each head that rotates; all of it by default, as in llama.cpp."""
    key = f"{architecture}.rope.dimension_count"
    width, heads = (metadata.get(f"{architecture}.{name}") for name in ("embedding_length", "attention.head_count"))
    rotating = metadata.get(key)
    if rotating is None or not (isinstance(width, int) and isinstance(heads, int) and heads and width >= heads):
        return 1.0  # wrong sizes are reported elsewhere
    width //= heads
    if isinstance(rotating, bool) or rotating not in range(2, width + 1, 2):
        raise UsageError(f"{key} is {rotating!r}; it must be even, and at most {width}, the head width")
    fraction: float = rotating / width
    return fraction if int(width * fraction) == rotating else math.nextafter(fraction, 2)  # it was rounded down
