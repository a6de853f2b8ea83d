"""The decoder-only transformer of every family, in plain PyTorch.

`prepare` swaps in faster, equivalent modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from ..plan.compute import Recompute
from ..spec import ModelSpec, RopeSpec
from .experts import Experts
from .layers import Embedding, Layer, Linear, Norm, activate
from .model import Model
from .positions import AttentionContext, Positions
from .rotary import Rope, RopeCache, rotate

_aten = torch.ops.aten
_PRODUCTS = [  # kept with selective recomputation: all else is cheap (Korthikanti et al. 2022, §5)
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]


class Attention(Layer):
    """Grouped-query attention (Ainslie et al. 2023, 2305.13245)."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, spec.window(layer)
        self.heads, self.kv_heads, self.head_width = spec.heads, spec.kv_heads, spec.head_width
        self.scale = spec.attention_scale or spec.head_width**-0.5
        self.softcap = spec.attention_softcap
        self.qkv = Linear(spec.width, (spec.heads + 2 * spec.kv_heads) * spec.head_width, spec.attention_bias)
        self.out = Linear(spec.heads * spec.head_width, spec.width, spec.attention_out_bias)
        self.sinks = nn.Parameter(torch.zeros(spec.heads)) if spec.attention_sinks else None
        self.qk_norm = spec.qk_norm
        if spec.qk_norm != "none":
            query_heads, key_heads = (1, 1) if spec.qk_norm == "head" else (spec.heads, spec.kv_heads)
            self.query_norm = Norm(spec, query_heads * spec.head_width)
            self.key_norm = Norm(spec, key_heads * spec.head_width)

    def forward(self, x: Tensor, context: AttentionContext, rope: Rope | None) -> Tensor:
        return self.out(self.attend(self.qkv(x), context, rope))

    def attend(self, qkv: Tensor, context: AttentionContext, rope: Rope | None) -> Tensor:
        """The input of `out`, (batch, time, heads * head_width), from `self.qkv`'s output, which may be overwritten."""
        batch, time, _ = qkv.shape
        heads = self.split_rope(qkv.view(batch, time, -1, self.head_width), rope)
        queries, keys, values = (part.transpose(1, 2) for part in heads)  # (batch, heads, time, head_width)
        return context.attend(self, queries, keys, values).transpose(1, 2).reshape(batch, time, -1)

    def split_rope(self, qkv: Tensor, rope: Rope | None) -> tuple[Tensor, ...]:
        """Queries, keys and values (batch, time, heads of each, head_width), with norms and rope applied."""
        queries_keys, values = qkv.tensor_split((self.heads + self.kv_heads,), dim=2)
        if self.qk_norm != "none":
            queries_keys = self._normalize(queries_keys)
        if rope is not None:
            queries_keys = rotate(queries_keys, *rope)
        return (*queries_keys.tensor_split((self.heads,), dim=2), values)

    def _normalize(self, queries_keys: Tensor) -> Tensor:
        queries, keys = queries_keys.tensor_split((self.heads,), dim=2)
        if self.qk_norm == "full":  # OLMo 2: one norm over all heads together
            queries = self.query_norm(queries.flatten(2)).view_as(queries)
            keys = self.key_norm(keys.flatten(2)).view_as(keys)
            return torch.cat((queries, keys), 2)
        return torch.cat((self.query_norm(queries), self.key_norm(keys)), 2)

    @property
    def needs_mask(self) -> bool:
        """Whether `scaled_dot_product` needs a mask even for a plain causal text."""
        return self.softcap is not None or self.sinks is not None

    def scaled_dot_product(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled dot-product attention, (batch, heads, time, head_width).

        `mask` is True where a query may attend; without one, attention is causal.
        """
        if self.needs_mask:
            assert mask is not None
            return self._explicit_attention(queries, keys, values, mask)
        return F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None and queries.shape[2] > 1, scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )  # fmt: skip

    def _explicit_attention(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention with features that torch's lacks: capped scores (Gemma 2) and sinks (gpt-oss)."""
        group = self.heads // self.kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = (queries @ keys.transpose(-1, -2)) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores.masked_fill(~mask, float("-inf")).float()
        if self.sinks is not None:  # a logit with a share of the softmax but no value
            sinks = self.sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), -1)
        return scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype) @ values


class MLP(Layer):
    """Gated (SwiGLU, GeGLU; Shazeer 2020, 2002.05202) or plain feed-forward layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.up = Linear(spec.width, spec.mlp_width * (2 if spec.mlp == "gated" else 1), spec.mlp_bias)  # gate first
        self.down = Linear(spec.mlp_width, spec.width, spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.spec))


class Block(Layer):
    """Attention and MLP on the residual stream, with norms placed as in the spec."""

    def __init__(self, spec: ModelSpec, layer: int, dropout: nn.Dropout) -> None:
        super().__init__()
        self.parallel, self.residual_scale, self.dropout = spec.parallel, spec.residual_scale, dropout
        before, after = spec.norm_place in ("before", "both"), spec.norm_place in ("after", "both")
        experts = spec.experts if spec.experts and layer >= spec.experts.dense_layers else None
        self.attention_norm = Norm(spec, spec.width) if before else nn.Identity()
        self.attention = Attention(spec, layer)
        self.attention_post_norm = Norm(spec, spec.width) if after else nn.Identity()
        self.mlp_norm = Norm(spec, spec.width) if before else nn.Identity()
        self.mlp = Experts(spec, experts) if experts else MLP(spec)
        self.mlp_post_norm = Norm(spec, spec.width) if after else nn.Identity()

    def forward(self, x: Tensor, context: AttentionContext, rope: Rope | None) -> Tensor:
        attended = self.attention_post_norm(self.attention(self.attention_norm(x), context, rope))
        if self.parallel:
            return x + self._branch(attended) + self._branch(self.mlp_post_norm(self.mlp(self.mlp_norm(x))))
        x = x + self._branch(attended)
        return x + self._branch(self.mlp_post_norm(self.mlp(self.mlp_norm(x))))

    def _branch(self, y: Tensor) -> Tensor:
        """The addend to the residual stream."""
        y = self.dropout(y)
        return y if self.residual_scale is None else y * self.residual_scale


class Transformer(Model):
    """A decoder-only transformer. See `Model` for the common interface."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.embedding = Embedding(spec.vocabulary, spec.width)
        self.positions = Embedding(spec.context, spec.width) if spec.position == "learned" else None
        self.blocks = nn.ModuleList(Block(spec, layer, self.dropout) for layer in range(spec.layers))
        self.norm = Norm(spec, spec.width)
        self.head = Linear(spec.width, spec.vocabulary, spec.head_bias)
        if spec.tied:
            self.head.weight = self.embedding.weight
        self.recompute: Recompute = "none"
        self.rope_cache = RopeCache(spec.head_width)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device  # a packed embedding has no parameters

    @property
    def max_context(self) -> int:
        return self.spec.context

    def set_regularization(self, dropout: float, recompute: Recompute) -> None:
        super().set_regularization(dropout, recompute)
        self.recompute = recompute

    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.hidden_over(tokens, Positions(tokens.shape[1], tokens.device, documents))

    def hidden_over(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """`hidden` with any attention context."""
        x = self.embed(tokens, context.positions)
        ropes = {rope: self._rope(rope, context, x.dtype) for rope in {*map(self.rope_of, range(self.spec.layers))}}
        recompute = self.recompute != "none" and self.training and torch.is_grad_enabled()
        contexts = _keep_products if self.recompute == "selective" else noop_context_fn
        for layer, block in enumerate(self.blocks):
            rope = ropes[self.rope_of(layer)]
            if recompute:
                x = checkpoint(block, x, context, rope, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x, context, rope)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The first layer's input, (batch, time, width); `positions` (1 or batch, time)."""
        x = self.embedding(tokens)  # (batch, time, width)
        if self.spec.embedding_scale is not None:
            x = x * torch.tensor(self.spec.embedding_scale, dtype=x.dtype)  # on the CPU: no copy in a CUDA graph
        if self.positions is not None:
            x = x + self.positions(positions)
        return self.dropout(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        if self.spec.logit_scale is not None:
            logits = logits * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap is not None else logits

    def rope_of(self, layer: int) -> RopeSpec | None:
        """The rope of a layer; None if it has none."""
        spec = self.spec
        if not spec.has_rope(layer):
            return None
        return spec.local_rope if spec.local_rope and spec.window(layer) else spec.rope

    def _rope(self, rope: RopeSpec | None, context: AttentionContext, dtype: torch.dtype) -> Rope | None:
        """cos and sin at the tokens' positions, each (1, time, 1, rotary_width)."""
        if rope is None:
            return None
        tables = self.rope_cache.tables(context.end, rope, context.positions.device)
        cosine, sine = (table[context.positions[0]].to(dtype)[None, :, None] for table in tables)
        return cosine, sine


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_PRODUCTS)  # type: ignore[no-untyped-call]
