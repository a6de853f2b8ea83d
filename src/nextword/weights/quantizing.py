"""Which type each matrix is quantized to: the mixes of llama.cpp's quantized files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..families import FileTensor, Parameter
from ..spec import ModelSpec
from .gguf_types import TYPES

_FALLBACKS = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # blocks of 32 columns


@dataclass(frozen=True)
class _Layer:
    """What a rule may look at."""

    spec: ModelSpec
    number: int

    @property
    def needs_more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third between."""
        eighth, last = self.spec.layers // 8, 7 * self.spec.layers // 8
        return self.number < eighth or self.number >= last or (self.number - eighth) % 3 == 2


Rule = Callable[[_Layer], str]


@dataclass(frozen=True)
class Mix:
    """The type of most matrices, and of those that a model is more sensitive to.

    `file_type` is the file's general.file_type (llama_ftype); `values` are the rows of attention's values, or of
    queries, keys and values where they are one tensor.
    """

    base: str
    file_type: int
    values: Rule | None = None
    down: Rule | None = None
    attention_out: str = ""


def _better(base: str) -> Rule:
    return lambda layer: "q6_k" if layer.needs_more_bits else base


def _grouped(layer: _Layer) -> str:
    return "q4_k" if layer.spec.heads >= 4 * layer.spec.kv_heads else "q3_k"


MIXES = {
    "q8_0": Mix("q8_0", 7),
    "q6_k": Mix("q6_k", 18),
    "q5_k_m": Mix("q5_k", 17, _better("q5_k"), _better("q5_k")),
    "q4_k_m": Mix("q4_k", 15, _better("q4_k"), _better("q4_k")),
    "q3_k_m": Mix(
        "q3_k", 12,
        values=lambda layer: "q5_k" if layer.number < 2 else "q4_k",
        down=lambda layer: "q5_k" if layer.number < layer.spec.layers // 16 else "q4_k",
        attention_out="q4_k",
    ),
    "q2_k": Mix("q2_k", 10, values=_grouped, down=lambda layer: "q3_k", attention_out="q3_k"),
}  # fmt: skip


def quantized_type(mix: Mix, spec: ModelSpec, parameter: Parameter, tensor: FileTensor) -> str:
    """The type ("q4_k", ..., or "f16" where no block divides a row) of a matrix that belongs to `parameter`."""
    return fitting(_wanted(mix, spec, parameter, tensor), tensor.shape[-1])


def fitting(kind: str, width: int) -> str:
    """`kind`, or the type used in its place for rows that are not whole blocks of it."""
    if width % TYPES[kind].values:
        kind = _FALLBACKS.get(kind, "f16")
    return "f16" if width % TYPES[kind].values else kind


def _wanted(mix: Mix, spec: ModelSpec, parameter: Parameter, tensor: FileTensor) -> str:
    """llama.cpp's choice (llama_tensor_get_type_impl in llama-quant.cpp), before widths are looked at."""
    name = parameter.name
    if name == "head.weight" or (spec.tied and name == "embedding.weight"):
        return "q8_0" if mix.base == "q8_0" or tensor.shape[-1] % TYPES[mix.base].values else "q6_k"
    if not name.startswith("blocks."):
        return mix.base
    _, number, role = name.split(".", 2)
    layer, eight = _Layer(spec, int(number)), spec.experts is not None and spec.experts.count == 8
    if role == "attention.qkv.weight" and tensor is not parameter.tensors[0] and eight:  # keys and values
        return "q8_0"
    if role == "attention.qkv.weight" and tensor is parameter.tensors[-1] and mix.values:
        return mix.values(layer)
    if role == "attention.out.weight" and mix.attention_out:
        return "q5_k" if eight else mix.attention_out
    if role == "attention.out.weight" and eight and mix.base == "q4_k":
        return "q5_k"
    return mix.down(layer) if role.startswith("mlp.down") and mix.down else mix.base
