"""Rotary position embeddings (Su et al. 2021, 2104.09864)."""

import math

import torch
from torch import Tensor

from ..spec import RopeSpec

Rope = tuple[Tensor, Tensor]  # cos and signed sin, (..., rotary_width)


def frequencies(rope: RopeSpec, head_width: int) -> Tensor:
    """Angle per position for each rotating pair, float32 (rotary_width / 2,), with the spec's scaling."""
    width = int(head_width * rope.fraction)
    plain = 1.0 / rope.theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        return _llama3(plain, rope)
    if rope.scaling == "yarn":
        return _yarn(plain, rope, width)
    if rope.scaling == "longrope":  # one choice for all texts, whatever their length: they share pages of rotated keys
        return plain / torch.tensor(rope.long_factors if rope.factor > 1 else rope.short_factors)
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


def tables(rope: RopeSpec, head_width: int, positions: int) -> Rope:
    """cos and signed sin, float32 (positions, rotary_width), for `rotate`."""
    angles = torch.outer(torch.arange(positions).float(), frequencies(rope, head_width))
    scale = amplitude(rope)
    cosine, sine = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the leading rotary_width features of `x` (..., head_width); pair i is (i, i + rotary_width/2).

    (a, b) -> (a cos - b sin, b cos + a sin), with the minus sign stored in the sine table.
    """
    width = cosine.shape[-1]
    if width == x.shape[-1]:
        return torch.addcmul(x * cosine, x.roll(width // 2, -1), sine)
    return torch.cat((rotate(x[..., :width], cosine, sine), x[..., width:]), -1)


class RopeCache:
    """A model's rope tables on each device, extended for longer texts."""

    def __init__(self, head_width: int) -> None:
        self.head_width = head_width
        self._tables: dict[tuple[RopeSpec, torch.device], Rope] = {}

    def tables(self, positions: int, rope: RopeSpec, device: torch.device) -> Rope:
        """float32 cos and signed sin of at least `positions` positions, (positions, rotary_width)."""
        cached = self._tables.get((rope, device))
        if cached is not None and len(cached[0]) >= positions:
            return cached
        with torch.inference_mode(False):  # tables created in inference must work in training
            cosine, sine = tables(rope, self.head_width, max(2 * positions, 1024))
        longer = self._tables[rope, device] = cosine.to(device), sine.to(device)
        return longer  # not the stored ones: another thread may have stored shorter tables


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Llama 3.1: frequencies with wavelengths beyond the old context are divided by `factor`, high ones kept."""
    wavelength = 2 * math.pi / plain
    share = (rope.original_context / wavelength - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    share = share.clamp(0, 1)
    return (1 - share) * plain / rope.factor + share * plain


def _yarn(plain: Tensor, rope: RopeSpec, width: int) -> Tensor:
    """2309.00071, section 3.2: high frequencies are kept, low ones interpolated."""

    def pair_rotating(times: float) -> float:
        ratio = rope.original_context / (times * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = pair_rotating(rope.beta_fast), pair_rotating(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = ((torch.arange(width // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
