"""Basic layers: linear, embedding, norm, activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec import ModelSpec


class Layer(nn.Module):
    """A module whose call is typed to return a tensor, unlike nn.Module's."""

    if TYPE_CHECKING:

        def __call__(self, *arguments: Any) -> Tensor: ...


class Linear(nn.Linear, Layer):
    """y = x W^T + b, W (out, in), x (..., in). Not initialised on the meta device."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    @property
    def has_bias(self) -> bool:
        """Whether a bias is added."""
        return self.bias is not None


class Embedding(nn.Embedding, Layer):
    """A row per token. Not initialised on the meta device: that alone would import torch's compiler."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Norm(Layer):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, in float32.

    An RMSNorm's weight is the factor itself: weights stored as an offset from one are converted on loading.
    """

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.eps, self.rms = spec.norm_eps, spec.norm == "rms"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if not self.rms and spec.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


def activate(inner: Tensor, spec: ModelSpec) -> Tensor:
    """The input of `down`, (..., inner width), from `up`'s output; gated: (..., 2 inner width), gate columns first."""
    function = _ACTIVATIONS[spec.activation]
    if spec.mlp == "plain":
        return function(inner)
    gate, up = inner.chunk(2, -1)
    if spec.activation == "swiglu_clamped":
        return function(gate.clamp(max=_CLAMP)) * (up.clamp(-_CLAMP, _CLAMP) + 1)
    return function(gate) * up


_CLAMP = 7.0  # gpt-oss
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu_clamped": lambda x: x * torch.sigmoid(1.702 * x),  # gpt-oss
}
