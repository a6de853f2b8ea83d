"""Rotary position embeddings (Su et al. 2021, 2104.09864)."""

import torch
from torch import Tensor

from ..rope import amplitude, frequencies
from ..spec import RopeSpec

Rope = tuple[Tensor, Tensor]  # cos and signed sin, (..., rotary_width)


def tables(rope: RopeSpec, head_width: int, positions: int) -> Rope:
    """cos and signed sin, float32 (positions, rotary_width), for `rotate`."""
    angles = torch.outer(torch.arange(positions).float(), torch.from_numpy(frequencies(rope, head_width)))
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
