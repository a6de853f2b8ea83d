"""Tensor names: our parameters ↔ the tensors of a folder or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..spec import GATES, ModelSpec

Array = TypeVar("Array", bound=Any)  # of torch or of numpy


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file, and the part of our parameter it holds.

    `swapped` (a, b, c): the file orders the rows as (a, b, c, ...), we as (a, c, b, ...). `transposed` matrices are
    (in, out) in the file (GPT-2). `offset` is added on loading (Gemma stores norm weights minus one).
    """

    name: str
    shape: tuple[int, ...]  # in our layout: (out, in), (width,), or one of these with the experts in front
    index: tuple[int | slice, ...]  # its index in our parameter
    is_vector: bool = False
    swapped: tuple[int, int, int] | None = None
    transposed: bool = False
    offset: float = 0.0

    def rows_from_file(self, array: Array) -> Array:
        """`array` with its rows reordered from the file's order to ours."""
        return array if self.swapped is None else self._swap(array, self.swapped)

    def rows_to_file(self, array: Array) -> Array:
        """The inverse."""
        if self.swapped is None:
            return array
        outer, first, second = self.swapped
        return self._swap(array, (outer, second, first))

    def _swap(self, array: Array, sizes: tuple[int, int, int]) -> Array:
        axis = len(self.shape) - (1 if self.is_vector else 2)
        shape = array.shape
        split: Any = array.reshape(*shape[:axis], *sizes, -1, *shape[axis + 1 :])
        swapped: Array = split.swapaxes(axis + 1, axis + 2).reshape(shape)
        return swapped


@dataclass(frozen=True)
class Parameter:
    """One of our parameters, by its name in the module, and the file tensors it consists of."""

    name: str
    shape: tuple[int, ...]
    tensors: tuple[FileTensor, ...]


class Ours(NamedTuple):
    """One of our parameters, and what is stacked along its rows: queries, keys and values; gate and up.

    0 columns: a vector. A mixture of experts is called `experts` here and `mlp` in the module.
    """

    name: str
    rows: tuple[int, ...]
    columns: int = 0
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        experts, columns = (self.experts,) if self.experts else (), (self.columns,) if self.columns else ()
        return (*experts, sum(self.rows), *columns)


@dataclass(frozen=True)
class Names:
    """Our module names → those in a file.

    `modules` maps ours, without the layer, to theirs: several space-separated names if the file has separate tensors
    for what we stack. It may also have a single parameter, by its full name. `{}` in a name is the expert's number, and
    names that begin with ^ take none of the `prefixes`. `ignored` are regular expressions of tensors that are redundant
    or not part of the language model.
    """

    modules: Mapping[str, str]
    layer: str = "layers.{}."
    prefixes: tuple[str, ...] = ("",)  # the first is used for writing
    ignored: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()  # modules
    paired: tuple[str, ...] = ()  # modules whose halves alternate: rotary pairs of queries and keys, gate and up
    qkv_by_head: bool = False  # query, key and value of head 0, then of head 1, ...
    norm_offset: float = 0.0

    def parameters(self, spec: ModelSpec) -> list[Parameter]:
        """Our parameters, each with its file tensors."""
        ends = [self._parameter(spec, ours, "", "") for ours in _ends(spec)]
        layers = [
            self._parameter(spec, ours, f"blocks.{layer}.", self.layer.format(layer))
            for layer in range(spec.layers if spec.kind == "transformer" else 0)
            for ours in _block(spec, layer)
        ]
        return ends + layers

    def _parameter(self, spec: ModelSpec, ours: Ours, block: str, layer: str) -> Parameter:
        theirs = [name if name.startswith("^") else layer + name for name in self._theirs(ours.name)]
        rows = ours.rows if len(theirs) > 1 else (sum(ours.rows),)
        tensors: list[FileTensor] = []
        for number, (name, height) in enumerate(zip(theirs, rows, strict=True)):
            first = sum(rows[:number])
            tensors += self._tensors(spec, ours, name, number, slice(first, first + height))
        return Parameter(block + ours.name.replace("experts.", "mlp."), ours.shape, tuple(tensors))

    def _theirs(self, name: str) -> list[str]:
        if name in self.modules:
            return self.modules[name].split()
        module, _, suffix = name.rpartition(".")
        return [f"{theirs}.{suffix}" for theirs in self.modules.get(module, module).split()]

    def _tensors(self, spec: ModelSpec, ours: Ours, name: str, number: int, rows: slice) -> Iterator[FileTensor]:
        columns = (ours.columns,) if ours.columns else ()
        shape = (rows.stop - rows.start, *columns)
        rest: dict[str, Any] = {
            "is_vector": not columns,
            "swapped": self._swapped(spec, ours, number, shape[0]),
            "transposed": bool(columns) and _module(ours.name) in self.transposed,
            "offset": self.norm_offset if "norm" in ours.name else 0.0,
        }
        if not ours.experts:
            yield FileTensor(name, shape, (rows,), **rest)
        elif "{}" in name:
            for expert in range(ours.experts):
                yield FileTensor(name.format(expert), shape, (expert, rows), **rest)
        else:
            yield FileTensor(name, (ours.experts, *shape), (slice(None), rows), **rest)

    def _swapped(self, spec: ModelSpec, ours: Ours, number: int, rows: int) -> tuple[int, int, int] | None:
        module = _module(ours.name)
        if module == "attention.qkv" and self.qkv_by_head:
            return 1, spec.heads, 3
        if module not in self.paired or (module == "attention.qkv" and number == 2):  # values are not rotated
            return None
        groups = (spec.heads, spec.kv_heads)[number] if module == "attention.qkv" else 1
        return groups, rows // groups // 2, 2


def _module(name: str) -> str:
    """attention.qkv of attention.qkv.bias, experts.up of experts.up_bias."""
    return name.removesuffix(".weight").removesuffix("bias").rstrip("._")


# ---- our parameters, in the order of their modules


def _ends(spec: ModelSpec) -> Iterator[Ours]:
    """Parameters outside the layers; for a recurrent net, all of them, under torch's names."""
    yield Ours("embedding.weight", (spec.vocabulary,), spec.width)
    if spec.kind == "transformer":
        if spec.position == "learned":
            yield Ours("positions.weight", (spec.context,), spec.width)
        yield from _norm(spec, "norm")
    else:
        rows = GATES[spec.kind] * spec.width
        for layer in range(spec.layers):
            for part in ("ih", "hh"):
                yield Ours(f"recurrent.weight_{part}_l{layer}", (rows,), spec.width)
                yield Ours(f"recurrent.bias_{part}_l{layer}", (rows,))
    if not spec.tied:
        yield Ours("head.weight", (spec.vocabulary,), spec.width)
    if spec.head_bias:
        yield Ours("head.bias", (spec.vocabulary,))


def _block(spec: ModelSpec, layer: int) -> Iterator[Ours]:
    heads, kv_heads = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    yield from _linear("attention.qkv", (heads, kv_heads, kv_heads), spec.width, spec.attention_bias)
    yield from _linear("attention.out", (spec.width,), heads, spec.attention_out_bias)
    if spec.qk_norm != "none":
        yield Ours("attention.query_norm.weight", (spec.head_width if spec.qk_norm == "head" else heads,))
        yield Ours("attention.key_norm.weight", (spec.head_width if spec.qk_norm == "head" else kv_heads,))
    if spec.attention_sinks:
        yield Ours("attention.sinks", (spec.heads,))
    if spec.norm_place != "after":
        yield from _norm(spec, "attention_norm")
        yield from _norm(spec, "mlp_norm")
    if spec.norm_place != "before":
        yield from _norm(spec, "attention_post_norm")
        yield from _norm(spec, "mlp_post_norm")
    if spec.experts and layer >= spec.experts.dense_layers:
        yield from _experts(spec)
    else:
        yield from _linear("mlp.up", _up(spec, spec.mlp_width), spec.width, spec.mlp_bias)
        yield from _linear("mlp.down", (spec.width,), spec.mlp_width, spec.mlp_bias)


def _up(spec: ModelSpec, width: int) -> tuple[int, ...]:
    return (width, width) if spec.mlp == "gated" else (width,)


def _experts(spec: ModelSpec) -> Iterator[Ours]:
    experts = spec.experts
    assert experts is not None
    yield from _linear("experts.router", (experts.count,), spec.width, experts.bias)
    yield Ours("experts.up", _up(spec, experts.width), spec.width, experts.count)
    yield Ours("experts.down", (spec.width,), experts.width, experts.count)
    if experts.bias:
        yield Ours("experts.up_bias", _up(spec, experts.width), 0, experts.count)
        yield Ours("experts.down_bias", (spec.width,), 0, experts.count)


def _linear(name: str, rows: tuple[int, ...], columns: int, bias: bool) -> Iterator[Ours]:
    yield Ours(f"{name}.weight", rows, columns)
    if bias:
        yield Ours(f"{name}.bias", rows)


def _norm(spec: ModelSpec, name: str) -> Iterator[Ours]:
    yield Ours(f"{name}.weight", (spec.width,))
    if spec.norm == "layer" and spec.norm_bias:
        yield Ours(f"{name}.bias", (spec.width,))


# ---- tables shared by many families

LLAMA = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "head": "^lm_head",
    "attention_norm": "input_layernorm",
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.gate_proj mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
LLAMA_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")
ROTARY_BUFFERS = r"(.*\.)?rotary_emb(_local)?\.(inv_freq|cos_cached|sin_cached)"  # saved by old versions

GGUF = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_q attn_k attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention.sinks": "attn_sinks.weight",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_gate ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
    "experts.router": "ffn_gate_inp",
    "experts.up": "ffn_gate_exps.weight ffn_up_exps.weight",
    "experts.up_bias": "ffn_gate_exps.bias ffn_up_exps.bias",
    "experts.down": "ffn_down_exps.weight",
    "experts.down_bias": "ffn_down_exps.bias",
}
GGUF_PLAIN = {"attention.qkv": "attn_qkv", "mlp.up": "ffn_up"}  # GPT-2 and GPT-NeoX: one matrix for both


def llama_names(**modules: str) -> Names:
    """Llama's names in a folder, with changes given as keywords: our names with __ for dots."""
    changes = {name.replace("__", "."): theirs for name, theirs in modules.items()}
    return Names(LLAMA | changes, prefixes=LLAMA_PREFIXES, ignored=(ROTARY_BUFFERS,))


def gguf_names(changes: Mapping[str, str] | None = None, paired: bool = False) -> Names:
    """llama.cpp's names. `paired`: its converter interleaves the rotary halves of queries and keys."""
    return Names(GGUF | dict(changes or {}), "blk.{}.", paired=("attention.qkv",) if paired else ())
