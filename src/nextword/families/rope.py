"""Rope in config.json and in GGUF metadata ↔ RopeSpec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..base import UsageError
from ..spec import ModelSpec, RopeSpec
from .config import Config

Values = dict[str, Any]  # of a config.json, or of GGUF metadata

_KNOWN = ("default", "linear", "llama3", "yarn", "longrope")


def rope_from_config(
    config: Config, theta: float = 10_000.0, layer_type: str | None = None, fraction: float = 1.0
) -> RopeSpec:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    `theta` and `fraction` are defaults; `layer_type` selects the parameters of one type of layer (Gemma 3).
    """
    table = config.table("rope_parameters") or config.table("rope_scaling")
    if table is not None and layer_type is not None and layer_type in table.values:
        table = table.table(layer_type)
    if table is None:
        return RopeSpec(theta=config.number("rope_theta", theta), fraction=fraction)
    kind = table.values.get("rope_type") or table.values.get("type") or "default"
    if kind == "su":  # its former name
        kind = "longrope"
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise UsageError(f"{table.what}: rope type {kind!r} is not known. Known: {', '.join(_KNOWN)}")
    values: dict[str, Any] = {} if kind == "default" else {"scaling": kind, **_scaling(kind, table, config)}
    theta = table.number("rope_theta", config.number("rope_theta", theta))
    return RopeSpec(theta=theta, fraction=table.number("partial_rotary_factor", fraction), **values)


def _scaling(kind: str, table: Config, config: Config) -> dict[str, Any]:
    """The fields of RopeSpec for an extended context."""
    values: dict[str, Any] = {"factor": table.number("factor", 1.0)}
    if kind == "linear":
        return values
    context = config.count("max_position_embeddings", 2048)
    values["original_context"] = table.count("original_max_position_embeddings", context)
    if kind == "llama3":
        low, high = table.number("low_freq_factor", 1.0), table.number("high_freq_factor", 4.0)
        if high <= low:
            raise UsageError(f"{table.what}: high_freq_factor {high} must be above low_freq_factor {low}")
        return values | {"low_frequency": low, "high_frequency": high}
    if kind == "longrope":
        original = config.count("original_max_position_embeddings", values["original_context"])
        return {
            "original_context": original,
            "factor": table.number("factor", context / original),
            "attention_factor": table.optional_number("attention_factor"),
            "short_factors": table.numbers("short_factor"),
            "long_factors": table.numbers("long_factor"),
        }
    return values | {
        "beta_fast": table.number("beta_fast", 32.0),
        "beta_slow": table.number("beta_slow", 1.0),
        "attention_factor": _yarn_attention(table, values["factor"]),
        "truncate": table.flag("truncate", True),
    }


def _yarn_attention(table: Config, factor: float) -> float | None:
    given = table.optional_number("attention_factor")
    one, all_ = table.optional_number("mscale"), table.optional_number("mscale_all_dim")
    if given is not None or one is None or all_ is None or factor <= 1:
        return given
    return (0.1 * one * math.log(factor) + 1) / (0.1 * all_ * math.log(factor) + 1)  # DeepSeek's form


def rope_config(rope: RopeSpec) -> Values:
    """transformers' `rope_parameters` of a RopeSpec."""
    values: Values = {"rope_theta": rope.theta, "rope_type": "default" if rope.scaling == "none" else rope.scaling}
    if rope.fraction != 1.0:
        values["partial_rotary_factor"] = rope.fraction
    if rope.scaling == "none":
        return values
    values["factor"] = rope.factor
    if rope.scaling != "linear":
        values["original_max_position_embeddings"] = rope.original_context
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    if rope.scaling == "longrope":
        values |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    if rope.attention_factor is not None:
        values["attention_factor"] = rope.attention_factor
    return values


# ---- GGUF

_GGUF_SCALING = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def scaling_from_gguf(metadata: Mapping[str, Any], architecture: str) -> Values | None:
    """`rope_scaling` of config.json, or None without scaling."""
    keys = {name: f"{architecture}.rope.scaling.{key}" for key, name in _GGUF_SCALING.items()}
    values = {name: metadata[key] for name, key in keys.items() if key in metadata}
    stretched = values.get("rope_type") not in (None, "none") and isinstance(values.get("factor"), int | float)
    return values if stretched else None


def scaling_to_gguf(spec: ModelSpec) -> Values:
    """The inverse of `scaling_from_gguf`. Llama 3's and longrope's scaling is stored as tensors."""
    if spec.rope.scaling not in ("linear", "yarn"):
        return {}
    values = rope_config(spec.rope)
    return {f"rope.scaling.{key}": values[name] for key, name in _GGUF_SCALING.items() if name in values}
