"""Frequencies of rotary position embeddings (Su et al. 2021, 2104.09864), with the scaling of a longer context."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .spec import RopeSpec

Floats = NDArray[np.float32]


def frequencies(rope: RopeSpec, head_width: int) -> Floats:
    """Angle per position for each rotating pair, float32 (rotary_width / 2,), with the spec's scaling.

    The power is rounded once, from float64: NumPy's float32 power differs between processors in the last bit.
    """
    width = int(head_width * rope.fraction)
    exponents = np.arange(0, width, 2).astype(np.float32) / np.float32(width)
    plain: Floats = np.float32(1) / np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    if rope.scaling == "linear":
        return plain / np.float32(rope.factor)
    if rope.scaling == "llama3":
        return _llama3(plain, rope)
    if rope.scaling == "yarn":
        return _yarn(plain, rope, width)
    if rope.scaling == "longrope":  # one choice for all texts, whatever their length: they share pages of rotated keys
        factors: Floats = np.array(rope.long_factors if rope.factor > 1 else rope.short_factors, np.float32)
        return plain / factors
    return plain


def amplitude(rope: RopeSpec) -> float:
    """The factor on cos and sin, by which YaRN and LongRoPE sharpen attention; otherwise 1."""
    if rope.scaling not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    if rope.scaling == "yarn":
        return 0.1 * math.log(rope.factor) + 1.0  # 2309.00071, eq. 22
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_context))  # 2402.13753, section 4


def _llama3(plain: Floats, rope: RopeSpec) -> Floats:
    """Llama 3.1: frequencies with wavelengths beyond the old context are divided by `factor`, high ones kept."""
    turns = np.float32(rope.original_context) / (np.float32(2 * math.pi) / plain)
    share = (turns - np.float32(rope.low_frequency)) / np.float32(rope.high_frequency - rope.low_frequency)
    share = share.clip(0, 1)
    return (1 - share) * plain / np.float32(rope.factor) + share * plain


def _yarn(plain: Floats, rope: RopeSpec, width: int) -> Floats:
    """2309.00071, section 3.2: high frequencies are kept, low ones interpolated."""

    def pair_rotating(times: float) -> float:
        ratio = rope.original_context / (times * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_rotating(rope.beta_fast), pair_rotating(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    pairs = np.arange(width // 2).astype(np.float32)
    ramp = ((pairs - np.float32(low)) / np.float32(max(high - low, 0.001))).clip(0, 1)
    stretched: Floats = plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)
    return stretched
