"""The decoder-only transformer, every family of it, from one ModelSpec."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import native
from ..native.decode import LayerWeights, NormWeights, RopeTables, TransformerProgram
from ..native.elementwise import swiglu
from ..spec import ModelSpec, RopeSpec
from . import fused
from .layers import Embedding, Layer, Linear, Norm, PackedEmbedding, PackedLinear, fast, plain
from .model import Model
from .rotary import rotate, tables


class Where:
    """Where the tokens of a text stand, worked out once and read by every layer.

    With `documents` (batch, time), numbers of the documents packed in a row, none looks into another document.
    """

    def __init__(self, time: int, device: torch.device, documents: Tensor | None = None) -> None:
        self.time, self.documents = time, documents
        self.positions = torch.arange(time, device=device)[None]  # (1, time)
        self._masks: dict[int, Tensor] = {}

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What each token takes from those before it, (batch, heads, time, head_width)."""
        causal = self.documents is None and (not attention.window or self.time <= attention.window)
        mask = None if causal and attention.softcap is None else self._mask(attention.window)
        return attention.attend(queries, keys, values, mask)

    def _mask(self, window: int) -> Tensor:
        """True where a query may look: keys not after it and, with a window, less than `window` before it."""
        if window not in self._masks:
            distance = self.positions[:, None, :, None] - self.positions[0]  # (1, 1, time, time)
            seen = distance >= 0
            if window:
                seen = seen & (distance < window)
            if self.documents is not None:
                seen = seen & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
            self._masks[window] = seen
        return self._masks[window]


class Context(Protocol):
    """What tokens are computed in: a text of their own (`Where`), or behind pages (`paged.PagedAttention`)."""

    @property
    def positions(self) -> Tensor:
        """(1 or batch, time)"""

    def attend(self, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What each token takes from those that it may see, (batch, heads, time, head_width)."""


class Attention(Layer):
    """Grouped-query attention over the tokens given and those in the cache."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, spec.window(layer)
        self.heads, self.kv_heads, self.head_width = spec.heads, spec.kv_heads, spec.head_width
        self.scale = spec.attention_scale or spec.head_width**-0.5
        self.softcap = spec.attention_softcap
        self.qkv = Linear(spec.width, (spec.heads + 2 * spec.kv_heads) * spec.head_width, spec.attention_bias)
        self.out = Linear(spec.heads * spec.head_width, spec.width, spec.attention_out_bias)
        self.qk_norm = spec.qk_norm
        if spec.qk_norm != "none":
            each = (1, 1) if spec.qk_norm == "head" else (spec.heads, spec.kv_heads)
            self.query_norm = Norm(spec, each[0] * spec.head_width)
            self.key_norm = Norm(spec, each[1] * spec.head_width)

    def forward(self, x: Tensor, where: Context, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        return self.out(self.mix(self.qkv(x), where, rope))

    def mix(self, qkv: Tensor, where: Context, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """What `out` reads, from what the layer made of its input; `qkv` may be written over."""
        batch, time, _ = qkv.shape
        parts = self._parts(qkv.view(batch, time, -1, self.head_width), rope)
        queries, keys, values = (part.transpose(1, 2) for part in parts)
        return where.attend(self, queries, keys, values).transpose(1, 2).reshape(batch, time, -1)

    def _parts(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """Queries, keys and values (batch, time, heads of each, head_width) where they stand."""
        if rope is not None and self.qk_norm == "none" and fused.usable(qkv) and plain(self.qkv, Linear):
            return fused.turned_parts(qkv, self.heads, self.kv_heads, *rope)
        turning, values = qkv.tensor_split((self.heads + self.kv_heads,), dim=2)
        if self.qk_norm != "none":
            turning = self._normalise(turning)
        if rope is not None:
            turning = rotate(turning, *rope)
        return (*turning.tensor_split((self.heads,), dim=2), values)

    def _normalise(self, turning: Tensor) -> Tensor:
        queries, keys = turning.tensor_split((self.heads,), dim=2)
        if self.qk_norm == "full":  # OLMo 2: one norm over all heads together
            queries = self.query_norm(queries.flatten(2)).view_as(queries)
            keys = self.key_norm(keys.flatten(2)).view_as(keys)
            return torch.cat((queries, keys), 2)
        return torch.cat((self.query_norm(queries), self.key_norm(keys)), 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, heads, time, head_width) of values, weighted by how well each key answers each query.

        `mask` is True where a query may look; without one, each looks at the keys up to its own.
        """
        if self.softcap is not None:
            assert mask is not None
            return self._attend_capped(queries, keys, values, mask)
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and queries.shape[2] > 1,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )

    def _attend_capped(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Gemma 2: scores pass through cap * tanh(score / cap), which no fused kernel on CPU offers."""
        assert self.softcap is not None
        group = self.heads // self.kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = (queries @ keys.transpose(-1, -2)) * self.scale
        scores = self.softcap * torch.tanh(scores / self.softcap)
        scores = scores.masked_fill(~mask, float("-inf"))
        return scores.float().softmax(-1).to(values.dtype) @ values


class MLP(Layer):
    """Gated (SwiGLU, GeGLU) or plain feed-forward layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gated, self.activation = spec.mlp == "gated", spec.activation
        self.up = Linear(spec.width, spec.mlp_width * (2 if self.gated else 1), spec.mlp_bias)  # gate rows first
        self.down = Linear(spec.mlp_width, spec.width, spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x)
        if self.gated:
            if self.activation == "silu" and fast(inner):
                return self.down(swiglu(inner))
            if self.fusible(inner):
                return fused.gated_linear(inner, self.down.weight)
            gate, inner = inner.chunk(2, -1)
            return self.down(self._activate(gate) * inner)
        return self.down(self._activate(inner))

    def fusible(self, x: Tensor) -> bool:
        """Whether the gated product and `down` are one function, of x as they compute it."""
        swiglu = self.gated and self.activation == "silu"
        return swiglu and plain(self.down, Linear) and not self.down.biased and fused.usable(x, self.down.weight)

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(Layer):
    """Attention and MLP, each added to the residual stream, with norms where the spec puts them."""

    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.parallel, self.dropout = spec.parallel, 0.0
        before, after = spec.norm_place in ("before", "both"), spec.norm_place in ("after", "both")
        self.attention_norm = Norm(spec, spec.width) if before else nn.Identity()
        self.attention = Attention(spec, layer)
        self.attention_post_norm = Norm(spec, spec.width) if after else nn.Identity()
        self.mlp_norm = Norm(spec, spec.width) if before else nn.Identity()
        self.mlp = MLP(spec)
        self.mlp_post_norm = Norm(spec, spec.width) if after else nn.Identity()

    def forward(self, x: Tensor, where: Context, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        if self._fusible(x):
            return self._fused(x, where, rope)
        attended = self.attention_post_norm(self.attention(self.attention_norm(x), where, rope))
        if self.parallel:
            return x + self._drop(attended) + self._drop(self.mlp_post_norm(self.mlp(self.mlp_norm(x))))
        x = x + self._drop(attended)
        return x + self._drop(self.mlp_post_norm(self.mlp(self.mlp_norm(x))))

    def _fusible(self, x: Tensor) -> bool:
        """Whether each norm and each sum joins a matrix product: norms before, sums at once, nothing between."""
        if self.parallel or (self.dropout and self.training) or not fused.usable(x):
            return False
        attention, mlp = self.attention, self.mlp
        before, after = (self.attention_norm, self.mlp_norm), (self.attention_post_norm, self.mlp_post_norm)
        matrices = (attention.qkv, attention.out, mlp.up)
        return (
            all(isinstance(norm, Norm) and norm.rms and plain(norm, Norm) for norm in before)
            and all(plain(norm, nn.Identity) for norm in after)
            and plain(attention, Attention)
            and plain(mlp, MLP)
            and all(plain(matrix, Linear) and fused.usable(matrix.weight) for matrix in matrices)
            and not attention.out.biased
            and not mlp.up.biased
            and mlp.fusible(x)
        )

    def _fused(self, x: Tensor, where: Context, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        attention, norm, mlp_norm = self.attention, self.attention_norm, self.mlp_norm
        assert isinstance(norm, Norm)
        assert isinstance(mlp_norm, Norm)
        qkv, x = fused.normed_linear(x, norm.weight, norm.eps, attention.qkv.weight, attention.qkv.bias)
        x = fused.linear_added(attention.mix(qkv, where, rope), attention.out.weight, x)
        return fused.gated_mlp(x, mlp_norm.weight, mlp_norm.eps, self.mlp.up.weight, self.mlp.down.weight)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def held(self) -> LayerWeights:
        """What a compiled step reads of this layer."""
        attention, mlp = self.attention, self.mlp
        normed = attention.qk_norm != "none"
        return LayerWeights(
            qkv=attention.qkv.held(),
            out=attention.out.held(),
            up=mlp.up.held(),
            down=mlp.down.held(),
            attention_norm=_held(self.attention_norm),
            attention_post_norm=_held(self.attention_post_norm),
            mlp_norm=_held(self.mlp_norm),
            mlp_post_norm=_held(self.mlp_post_norm),
            query_norm=attention.query_norm.held() if normed else None,
            key_norm=attention.key_norm.held() if normed else None,
        )


_KNOWN = (nn.ModuleList, Block, Attention, MLP, Linear, PackedLinear, Norm, nn.Identity)


def _held(norm: nn.Module) -> NormWeights | None:
    return norm.held() if isinstance(norm, Norm) else None


class Transformer(Model):
    """A decoder-only transformer. See `Model` for what every model offers."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding: Embedding | PackedEmbedding = Embedding(spec.vocabulary, spec.width)
        self.positions = Embedding(spec.context, spec.width) if spec.position == "learned" else None
        self.blocks = nn.ModuleList(Block(spec, layer) for layer in range(spec.layers))
        self.norm = Norm(spec, spec.width)
        self.head: Linear | PackedLinear = Linear(spec.width, spec.vocabulary, spec.head_bias)
        if spec.tied and isinstance(self.embedding, Embedding):
            self.head.weight = self.embedding.weight
        self.dropout = 0.0  # in training, of the embeddings; each block has its own
        self.recompute = False  # in training, form each block's activations again in the backward pass
        self._tables: dict[RopeSpec, tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def longest(self) -> int:
        """Tokens a sequence may have: the context."""
        return self.spec.context

    def hidden(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """What `logits` reads: the last layer's normed output, (batch, time, width).

        `documents` (batch, time) numbers the documents packed in a row, which then do not see each other.
        """
        with native.threads_for(tokens.numel()):
            return self.hidden_over(tokens, Where(tokens.shape[1], tokens.device, documents))

    def hidden_over(self, tokens: Tensor, where: Context) -> Tensor:
        """The same in any context."""
        x = self.embed(tokens, where.positions)
        rope = self._rope(self.spec.rope, where, x.dtype)
        local = self._rope(self.spec.local_rope, where, x.dtype) if self.spec.local_rope else rope
        for layer, block in enumerate(self.blocks):
            turning = local if self.spec.window(layer) else rope
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, where, turning, use_reentrant=False)
            else:
                x = block(x, where, turning)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads, (batch, time, width); `positions` (1 or batch, time)."""
        x = self.embedding(tokens)  # (batch, time, width)
        if self.spec.embedding_scale is not None:
            x = x * torch.tensor(self.spec.embedding_scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.positions(positions)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (..., vocabulary) from `hidden` (..., width)."""
        with native.threads_for(hidden.numel() // self.spec.width):
            logits = self.head(hidden).float()
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap is not None else logits

    def program(self) -> TransformerProgram | None:
        """The layers as the compiled kernels run them; None where these do not compute, or know a layer no more."""
        here = self.device.type == "cpu" and self.dtype == torch.float32 and native.available()
        if not here or type(self.norm) is not Norm or type(self.head) not in (Linear, PackedLinear):
            return None
        if not all(type(module) in _KNOWN for module in self.blocks.modules()):
            return None
        return TransformerProgram(self.spec, [block.held() for block in self.blocks if isinstance(block, Block)])

    def rope_tables(self, positions: int) -> tuple[RopeTables | None, RopeTables | None]:
        """What the compiled layers turn by, without and with a window: tables of at least `positions` positions."""
        rope = self._table(self.spec.rope, positions, self.device)
        return rope, self._table(self.spec.local_rope, positions, self.device) if self.spec.local_rope else rope

    def _apply(self, *arguments: Any, **options: Any) -> Self:  # every move to another device passes here
        self._tables.clear()
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        return self

    def _rope(self, rope: RopeSpec, where: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """cos and sin at the tokens' positions, each (1 or batch, time, 1, rotary_width)."""
        last = where.time if isinstance(where, Where) else int(where.positions.max()) + 1
        table = self._table(rope, last, where.positions.device)
        if table is None:
            return None
        rows = slice(0, last) if isinstance(where, Where) else where.positions[0]
        cosine, sine = (part[rows].to(dtype)[None, :, None] for part in table)
        return cosine, sine

    def _table(self, rope: RopeSpec, positions: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """float32 cos and signed sin of at least `positions` positions, (positions, rotary_width)."""
        if self.spec.position != "rotary":
            return None
        found = self._tables.get(rope)
        if found is None or found[0].shape[0] < positions:
            with torch.inference_mode(False):  # made while generating, they must still serve training
                cosine, sine = tables(rope, self.spec.head_width, max(2 * positions, 1024))
            found = self._tables[rope] = (
                cosine.to(device),
                sine.to(device),
            )  # another thread may put shorter ones here
        return found
