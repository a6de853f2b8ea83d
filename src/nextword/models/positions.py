"""Token positions and attention masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .transformer import Attention


class AttentionContext(Protocol):
    """What tokens attend over: their own text (`Positions`), or pages (`paged.PagedAttention`)."""

    @property
    def positions(self) -> Tensor:
        """(1 or batch, time)"""

    @property
    def end(self) -> int:
        """One past the last of `positions`."""

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The attention output of each token, (batch, heads, time, head_width)."""


class Positions:
    """Positions 0 to `time` - 1, computed once for all layers.

    With `documents` (batch, time), the numbers of packed documents, tokens only attend within their document.
    """

    def __init__(self, time: int, device: torch.device, documents: Tensor | None = None) -> None:
        self.end, self.documents = time, documents
        self.positions = torch.arange(time, device=device)[None]  # (1, time)
        self._masks: dict[int, Tensor] = {}
        self._first_keys: dict[int, Tensor] = {}

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `AttentionContext`."""
        causal = self.documents is None and (not attention.window or self.end <= attention.window)
        mask = None if causal and not attention.needs_mask else self._mask(attention.window)
        return attention.scaled_dot_product(queries, keys, values, mask)

    def first_keys(self, window: int) -> Tensor | None:
        """The first position that each token attends to, float32 (1 or batch, time); None where all start at 0."""
        if self.documents is None and (not window or self.end <= window):
            return None
        if window not in self._first_keys:
            first = self.positions - (window - 1 if window else self.end)
            if self.documents is not None:
                starts = self.positions.expand(self.documents.shape).clone()
                starts[:, 1:][self.documents[:, 1:] == self.documents[:, :-1]] = 0
                first = torch.maximum(first, starts.cummax(1).values)
            self._first_keys[window] = first.clamp(min=0).float()
        return self._first_keys[window]

    def _mask(self, window: int) -> Tensor:
        """True where a query may attend: keys not after it and, with a window, less than `window` before it."""
        if window not in self._masks:
            distance = self.positions[:, None, :, None] - self.positions[0]  # (1, 1, time, time)
            visible = distance >= 0
            if window:
                visible = visible & (distance < window)
            if self.documents is not None:
                visible = visible & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
            self._masks[window] = visible
        return self._masks[window]
