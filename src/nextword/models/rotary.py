"""Rotary positions: the angles by which query and key pairs turn (Su et al. 2021, 2104.09864)."""

import math

import torch
from torch import Tensor

from ..spec import RopeSpec


def frequencies(rope: RopeSpec, head_width: int) -> Tensor:
    """Angle a position for each rotating pair, float32 (rotary_width / 2,), with the spec's scaling."""
    width = int(head_width * rope.fraction)
    plain = 1.0 / rope.theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return _llama3(plain, rope)
    if rope.scaling == "yarn":
        return _yarn(plain, rope, width)
    return plain


def amplitude(rope: RopeSpec) -> float:
    """What cos and sin are multiplied by: YaRN sharpens attention with it, others leave 1."""
    if rope.scaling != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0  # 2309.00071, eq. 22


def tables(rope: RopeSpec, head_width: int, positions: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin, float32 (positions, rotary_width), for `rotate`."""
    angles = torch.outer(torch.arange(positions).float(), frequencies(rope, head_width))
    scale = amplitude(rope)
    cosine, sine = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the leading rotary_width features of `x` (..., head_width); pair i is (i, i + rotary_width/2).

    (a, b) -> (a cos - b sin, b cos + a sin), with the minus sign held in the table of sines.
    """
    width = cosine.shape[-1]
    if width == x.shape[-1]:
        return torch.addcmul(x * cosine, x.roll(width // 2, -1), sine)
    turning, still = x[..., :width], x[..., width:]
    return torch.cat((rotate(turning, cosine, sine), still), -1)


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Llama 3.1: waves longer than the old context are slowed by `factor`, short ones kept, between blended."""
    wavelength = 2 * math.pi / plain
    share = (rope.original_context / wavelength - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    share = share.clamp(0, 1)
    return (1 - share) * plain / rope.factor + share * plain


def _yarn(plain: Tensor, rope: RopeSpec, width: int) -> Tensor:
    """2309.00071, section 3.2: pairs that turn often keep their speed, slow ones are interpolated."""

    def pair_turning(times: float) -> float:
        ratio = rope.original_context / (times * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = ((torch.arange(width // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
