"""LoRA: low-rank adapters next to frozen weights (Hu et al. 2021, 2106.09685)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import UsageError
from ..models.layers import Layer, Linear
from .loss_module import seeded

SCALE = 2.0  # alpha / rank


class LoRALinear(Layer):
    """y = x Wᵀ + 2 (x Aᵀ) Bᵀ; W frozen, A (rank, in) random, B (out, rank) zero, so that training starts from W."""

    def __init__(self, base: Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen product is accumulated onto the adapter's, so that both are rounded once.

        In 16 bits, `base(x) + adapter` would round twice, and lose most of a small adapter's contribution: the model
        in training would differ from the merged one.
        """
        learnt = SCALE * F.linear(F.linear(x, self.down), self.up)
        if self.base.bias is not None:
            learnt = learnt + self.base.bias
        flat = torch.addmm(learnt.flatten(0, -2), x.flatten(0, -2), self.base.weight.t())
        return flat.view(learnt.shape)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The frozen matrix with the adapter merged."""
        self.base.weight += SCALE * (self.up @ self.down)
        return self.base


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze `model` and add adapters of `rank` to every matrix of its layers. Raises UsageError if it has none."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise UsageError("LoRA adapts the matrices of a transformer's layers; train this model without it")
    model.requires_grad_(False)
    with seeded(seed):
        for parent in list(blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Linear):
                    setattr(parent, name, LoRALinear(child, rank))


def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters into the matrices, which makes `model` a plain one again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())
