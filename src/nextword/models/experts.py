"""Mixture of experts (Shazeer et al. 2017, 1701.06538; Jiang et al. 2024, 2401.04088)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec import ExpertsSpec, ModelSpec
from .layers import Layer, Linear, activate


class Experts(Layer):
    """A router sends each token to `active` of `count` MLPs, whose outputs are summed with the router's weights.

    `up` is (count, 2 inner width, width), gate rows first; `down` is (count, width, inner width).
    """

    def __init__(self, spec: ModelSpec, experts: ExpertsSpec) -> None:
        super().__init__()
        self.spec, self.active, self.normalize = spec, experts.active, experts.normalize
        rows = experts.width * (2 if spec.mlp == "gated" else 1)
        self.router = Linear(spec.width, experts.count, experts.bias)
        self.up = nn.Parameter(torch.empty(experts.count, rows, spec.width))
        self.down = nn.Parameter(torch.empty(experts.count, spec.width, experts.width))
        self.up_bias = nn.Parameter(torch.zeros(experts.count, rows)) if experts.bias else None
        self.down_bias = nn.Parameter(torch.zeros(experts.count, spec.width)) if experts.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each matrix as torch.nn.Linear does."""
        for weight in (self.up, self.down):
            if not weight.is_meta:
                bound = weight.shape[-1] ** -0.5
                nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (tokens, width)
        weights, chosen = self.route(tokens)
        y = torch.zeros_like(tokens)
        for expert in torch.unique(chosen).tolist():
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            y = y.index_add(0, rows, self.expert(expert, tokens[rows]) * weights[rows, slots, None])
        return y.view(x.shape)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of each token's experts, (tokens, active) each."""
        probs = self.router(tokens).float().softmax(-1)
        weights, chosen = probs.topk(self.active)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(tokens.dtype), chosen

    def expert(self, number: int, x: Tensor) -> Tensor:
        """The output of one expert, (rows, width) → (rows, width)."""
        inner = _product(x, self.up[number], self.up_bias, number)
        return _product(activate(inner, self.spec), self.down[number], self.down_bias, number)


def _product(x: Tensor, matrix: Tensor, biases: Tensor | None, number: int) -> Tensor:
    y = F.linear(x, matrix)
    return y if biases is None else y + biases[number]
