"""GGUF: llama.cpp's own names for the tensors of every family."""

from __future__ import annotations

from ...spec import ModelSpec
from .common import Entry, Piece, entry, norm

# Norms that stand after attention and MLP are called the same in all architectures.
_NORMS = {
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
}
_PLACED = {
    "before": ("attention_norm", "mlp_norm"),
    "after": ("attention_post_norm", "mlp_post_norm"),
    "both": tuple(_NORMS),
}


def entries(spec: ModelSpec, architecture: str) -> list[Entry]:
    """Our parameters, each with the GGUF tensors that make it.

    The converter interleaves rotary halves for architecture "llama" alone, and has folded Gemma's norm
    offset, so none is added here.
    """
    width = spec.width
    queries, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    layered = spec.norm == "layer"
    found = [entry("embedding.weight", "token_embd.weight", spec.vocabulary, width)]
    if spec.position == "learned":
        found += [entry("positions.weight", "position_embd.weight", spec.context, width)]
    for layer in range(spec.layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        if architecture in ("gpt2", "gptneox"):
            found += _linear(
                f"{ours}.attention.qkv", [(f"{theirs}.attn_qkv", queries + 2 * keys)], width, spec.attention_bias
            )
        else:
            found += _separate_qkv(ours, theirs, spec, interleaved=architecture == "llama")
        found += _linear(f"{ours}.attention.out", [(f"{theirs}.attn_output", width)], queries, spec.attention_out_bias)
        if spec.qk_norm != "none":
            widths = (spec.head_width, spec.head_width) if spec.qk_norm == "head" else (queries, keys)
            found += norm(f"{ours}.attention.query_norm", f"{theirs}.attn_q_norm", widths[0], False)
            found += norm(f"{ours}.attention.key_norm", f"{theirs}.attn_k_norm", widths[1], False)
        for mine in _PLACED[spec.norm_place]:
            found += norm(f"{ours}.{mine}", f"{theirs}.{_NORMS[mine]}", width, layered)
        up = [(f"{theirs}.ffn_up", spec.mlp_width)]
        if spec.mlp == "gated":
            up.insert(0, (f"{theirs}.ffn_gate", spec.mlp_width))
        found += _linear(f"{ours}.mlp.up", up, width, spec.mlp_bias)
        found += _linear(f"{ours}.mlp.down", [(f"{theirs}.ffn_down", width)], spec.mlp_width, spec.mlp_bias)
    found += norm("norm", "output_norm", width, layered)
    if not spec.tied:
        found += [entry("head.weight", "output.weight", spec.vocabulary, width)]
    return found


def _linear(ours: str, names: list[tuple[str, int]], inner: int, bias: bool) -> list[Entry]:
    found = [Entry(f"{ours}.weight", tuple(Piece(f"{name}.weight", (rows, inner)) for name, rows in names))]
    if bias:
        found += [Entry(f"{ours}.bias", tuple(Piece(f"{name}.bias", (rows,)) for name, rows in names))]
    return found


def _separate_qkv(ours: str, theirs: str, spec: ModelSpec, interleaved: bool) -> list[Entry]:
    order = "rotary_pairs" if interleaved else "plain"
    parts = (("attn_q", spec.heads, order), ("attn_k", spec.kv_heads, order), ("attn_v", spec.kv_heads, "plain"))

    def pieces(kind: str, *inner: int) -> tuple[Piece, ...]:
        return tuple(
            Piece(f"{theirs}.{name}.{kind}", (heads * spec.head_width, *inner), order, heads)  # type: ignore[arg-type]
            for name, heads, order in parts
        )

    found = [Entry(f"{ours}.attention.qkv.weight", pieces("weight", spec.width))]
    if spec.attention_bias:
        found += [Entry(f"{ours}.attention.qkv.bias", pieces("bias"))]
    return found
