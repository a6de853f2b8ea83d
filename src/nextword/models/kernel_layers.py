"""Layers for training on the compiled kernels (float32 weights on a CPU), swapped in by `prepare`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from . import fused
from .layers import Norm
from .positions import AttentionContext, Positions
from .rotary import Rope
from .transformer import MLP, Attention, Block


class FusedRMSNorm(Norm):
    """With any autocast: saves its input and one number per row."""

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x.float(), self.weight, self.eps).to(x.dtype)


class CausalAttention(Attention):
    """Attention over a text's own tokens, not over pages, is one kernel."""

    def attend(self, qkv: Tensor, context: AttentionContext, rope: Rope | None) -> Tensor:
        if not isinstance(context, Positions):
            return super().attend(qkv, context, rope)
        heads = qkv.view(*qkv.shape[:2], -1, self.head_width)
        queries, keys, values = self.split_rope(heads, rope)
        return fused.causal_attention(queries, keys, values, self.scale, context.first_keys(self.window)).flatten(2)


class RopeAttention(Attention):
    """Queries and keys are rotated in place, all heads in one pass."""

    def split_rope(self, qkv: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        assert rope is not None
        return fused.split_rope(qkv if qkv.dtype == torch.bfloat16 else qkv.float(), self.heads, self.kv_heads, *rope)


class FusedAttention(RopeAttention, CausalAttention):
    """Both."""


class FusedMLP(MLP):
    """SwiGLU: the gated product is recomputed in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return fused.gated_linear(self.up(x), self.down.weight)


class FusedBlock(Block):
    """Pre-norm with SwiGLU: norms and sums join the matrix products, the MLP runs in blocks of rows."""

    def forward(self, x: Tensor, context: AttentionContext, rope: Rope | None) -> Tensor:
        attention, mlp = self.attention, cast(MLP, self.mlp)
        norm, mlp_norm = cast(Norm, self.attention_norm), cast(Norm, self.mlp_norm)
        qkv, x = fused.normed_linear(x, norm.weight, norm.eps, attention.qkv.weight, attention.qkv.bias)
        x = fused.linear_added(attention.attend(qkv, context, rope), attention.out.weight, x)
        return fused.gated_mlp(x, mlp_norm.weight, mlp_norm.eps, mlp.up.weight, mlp.down.weight)


EAGER_CLASSES: dict[type, type] = {  # kernel layer → the class it replaces
    FusedRMSNorm: Norm, CausalAttention: Attention, RopeAttention: Attention, FusedAttention: Attention,
    FusedMLP: MLP, FusedBlock: Block,
}  # fmt: skip
