"""Rope scaling that GGUF stores as tensors: Llama 3's divisors, longrope's factors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..base import UsageError
from ..rope import amplitude, frequencies
from ..spec import ModelSpec, RopeSpec
from .gguf import GGUFFile

_DIVISORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
NAMES = (_DIVISORS, _SHORT, _LONG)
_CONTEXTS = (8192, 2048, 4096, 16384, 32768)  # original contexts; Llama 3's first
_TOLERANCE = 1e-3


def stretched(spec: ModelSpec, file: GGUFFile) -> ModelSpec:
    """`spec`, from the metadata, with the rope scaling stored in tensors of the file.

    Raises UsageError for a scaling that does not fit the family.
    """
    if _DIVISORS in file.tensors:
        divisors = file.float32(_DIVISORS).ravel()
        rope = _llama3(spec.rope, spec.head_width, divisors)
        if rope is None:
            raise UsageError(
                f"{file.paths[0]}: tensor {_DIVISORS!r} holds an unknown rope scaling."
                " Use the model's safetensors folder"
            )
        return replace(spec, rope=rope)
    if _SHORT not in file.tensors or _LONG not in file.tensors:
        return spec
    architecture = file.architecture
    context = file.metadata.get(f"{architecture}.rope.scaling.original_context_length")
    short, long = (tuple(file.float32(name).ravel().tolist()) for name in (_SHORT, _LONG))
    pairs = int(spec.head_width * spec.rope.fraction) // 2
    if not isinstance(context, int) or context < 1 or not len(short) == len(long) == pairs:
        raise UsageError(
            f"{file.paths[0]}: {len(short)} and {len(long)} factors of longrope for {pairs} rotating pairs, and an"
            f" original context of {context!r}; the file is damaged, or belongs to another model"
        )
    rope = replace(
        spec.rope, scaling="longrope", factor=spec.context / context, original_context=context,
        short_factors=short, long_factors=long,
    )  # fmt: skip
    given = file.metadata.get(f"{architecture}.rope.scaling.attn_factor")
    if isinstance(given, float) and abs(given / amplitude(rope) - 1) > _TOLERANCE:
        rope = replace(rope, attention_factor=given)
    return replace(spec, rope=rope)


def factor_metadata(spec: ModelSpec, architecture: str) -> dict[str, float]:
    """The metadata of longrope besides its factors."""
    if spec.rope.scaling != "longrope":
        return {}
    return {f"{architecture}.rope.scaling.attn_factor": float(amplitude(spec.rope))}


def factor_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The inverse of `stretched`: tensors that a file holds besides the parameters.

    Raises UsageError for a scaling that cannot be recovered from its divisors.
    """
    rope = spec.rope
    if rope.scaling == "llama3":
        plain = RopeSpec(rope.theta, rope.fraction)
        divisors = frequencies(plain, spec.head_width) / frequencies(rope, spec.head_width)
        if _llama3(plain, spec.head_width, divisors) != rope:
            raise UsageError("GGUF cannot hold this rope scaling. Write a Hugging Face folder instead")
        return {_DIVISORS: divisors}
    if rope.scaling != "longrope":
        return {}
    factors = {_SHORT: rope.short_factors, _LONG: rope.long_factors}
    return {name: np.array(values, np.float32) for name, values in factors.items()}


def _llama3(rope: RopeSpec, head_width: int, divisors: NDArray[np.float32]) -> RopeSpec | None:
    """`rope` with the scaling from which `divisors` (rotating pairs,) were computed.

    llama.cpp's converter stores plain over scaled frequencies, not the numbers of config.json; this searches for
    numbers that give the same divisors. None if there are none.
    """
    if np.allclose(divisors, 1):
        return rope
    plain = frequencies(rope, head_width)
    if rope.scaling == "none" and divisors.shape == plain.shape:
        for context in _CONTEXTS:
            candidate = replace(rope, scaling="llama3", factor=float(divisors.max()), original_context=context)
            if np.allclose(plain / frequencies(candidate, head_width), divisors, rtol=_TOLERANCE):
                return candidate
    return None
