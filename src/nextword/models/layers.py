"""The two layers every model is made of: a matrix with a bias, and a norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import native
from ..native.decode import MatrixWeights, NormWeights
from ..native.elementwise import rms_norm
from ..native.matmul import PackedMatrix, linear
from ..spec import ModelSpec
from . import fused

FEW = 16  # vectors up to which the compiled product beats torch's


def fast(x: Tensor) -> bool:
    """Whether the compiled kernels may compute with `x`: float32 on a CPU, and no gradient wanted."""
    return x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled() and native.available()


def plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is just what `kind` says: not replaced (adapters do), and no hook waits for its call."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks)


class Layer(nn.Module):
    """A module whose call, unlike nn.Module's, is known to return a tensor."""

    if TYPE_CHECKING:

        def __call__(self, *arguments: Any) -> Tensor: ...


class Linear(nn.Linear, Layer):
    """y = x W^T + b, W (out, in), x (..., in)."""

    def __init__(self, inner: int, outer: int, bias: bool = False) -> None:
        super().__init__(inner, outer, bias)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= FEW * self.in_features and fast(x) and self.weight.dtype == torch.float32:
            y = linear(x, self.weight)
            return y if self.bias is None else y + self.bias
        return super().forward(x)

    @property
    def biased(self) -> bool:
        """Whether a bias is added."""
        return self.bias is not None

    def held(self) -> MatrixWeights:
        """What a compiled step reads."""
        return MatrixWeights(self.weight.detach(), _detached(self.bias))


class Embedding(nn.Embedding, Layer):
    """A row for each token. On the meta device nothing is drawn: that alone would import all of torch's compiler."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Norm(Layer):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, in float32.

    An RMSNorm's weight is the factor itself: weights stored as an offset from one are folded when loaded.
    """

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.eps, self.rms = spec.norm_eps, spec.norm == "rms"
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if not self.rms and spec.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.rms and fast(x):
            return rms_norm(x, self.weight, self.eps)
        wide = x.float()
        if not self.rms:
            return F.layer_norm(wide, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)
        if fused.usable(wide, self.weight, products=False):
            return fused.rms_norm(wide, self.weight, self.eps).to(x.dtype)
        return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(x.dtype)

    def held(self) -> NormWeights:
        """What a compiled step reads."""
        return NormWeights(self.weight.detach(), _detached(self.bias))


class PackedLinear(Layer):
    """A matrix held in quantized blocks and multiplied by nextword's compiled kernels (CPU, no gradients)."""

    def __init__(self, matrix: PackedMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix.matmul(x)
        return y if self.bias is None else y + self.bias

    def held(self) -> MatrixWeights:
        """What a compiled step reads."""
        return MatrixWeights(self.matrix, _detached(self.bias))


class PackedEmbedding(Layer):
    """Rows of a quantized matrix as float32."""

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.matrix.rows_at(tokens)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()
