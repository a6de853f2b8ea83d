"""Loads a model and its tokenizer by name or path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import native
from ..base import RunError, UsageError, free_memory
from ..families import FileTensor, Parameter
from ..models import Model, build, prepare
from ..models.experts import Experts
from ..models.layers import Embedding, Linear, Norm, PackedEmbedding, PackedLinear
from ..native.matmul import PackedMatrix, QuantType
from ..spec import ModelSpec
from ..text import Tokenizer
from .source import GGUFSource, Source, is_quantized, read_parameter, tensors_of

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
_PACKED: dict[str, QuantType] = {"q4_0": "q4_0", "q4_1": "q4_1", "q8_0": "q8_0"}
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run. `precision` is the type of its matrices: "float32", "q4_1 + q8_0", ..."""

    name: str
    path: Path
    model: Model
    tokenizer: Tokenizer
    precision: str

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec


def open_source(path: Path) -> Source:
    """The weights at `path`: a .gguf file or a Hugging Face folder. Reads only headers."""
    if path.is_dir():
        from .folder import FolderSource

        return FolderSource(path)
    return GGUFSource(path)


def load(name: str, dtype: Dtype = "auto", device: str = "auto") -> Loaded:
    """Load a model by catalogue name, folder, .gguf file or hf:owner/name.

    `dtype` "auto" keeps a quantized GGUF as stored if the compiled kernels run it, and is otherwise float32
    on a CPU and bfloat16 on a GPU; "int8" stores matrices as 8-bit blocks of 32 (CPU). Raises UsageError for
    invalid names, files and settings, RunError if the download fails or memory is short.
    """
    from .catalogue import resolve

    path = resolve(name)
    source = open_source(path)
    model = load_model(source, dtype, device)
    return Loaded(name, path, model, source.tokenizer(), _precision(model))


def load_model(source: Source, dtype: Dtype = "auto", device: str = "auto") -> Model:
    """The model of an opened source, without its tokenizer; see `load`."""
    where = _device(device)
    packed, floating = _choose(source, dtype, where)
    if packed and source.spec.kind != "transformer":
        raise UsageError(f"dtype int8 is not available for {source.spec.kind} models. Use: --dtype float32")
    _check_memory(source, packed, floating)
    with torch.device("meta"):
        model = build(source.spec)
    for parameter in source.parameters:
        _fill(model, source, parameter, packed, floating, where)
    if source.spec.tied and isinstance(model.head, Linear) and isinstance(model.embedding, Embedding):
        model.head.weight = model.embedding.weight
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # GPU kernels need them contiguous
    prepare(model.requires_grad_(False).eval(), "infer")
    return model


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}). Use: --device cpu") from None
    return device


def _choose(source: Source, dtype: Dtype, device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether matrices are stored in packed blocks, and the type of everything else."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known. Known: {', '.join(DTYPES)}")
    runnable = device.type == "cpu" and native.available()
    if dtype == "int8":
        if not runnable:
            raise UsageError(
                "dtype int8 needs nextword's compiled CPU kernels, which are not installed."
                " Install a C compiler and reinstall nextword, or use: --dtype float32"
            )
        return True, torch.float32
    if dtype == "auto":
        stored = {source.kind(tensor) for tensor in tensors_of(source)}
        if runnable and any(is_quantized(kind) for kind in stored):
            return True, torch.float32
        return False, torch.bfloat16 if device.type == "cuda" else torch.float32
    return False, {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def _fill(
    model: Model, source: Source, parameter: Parameter, packed: bool, floating: torch.dtype, device: torch.device
) -> None:
    """Read one parameter and put it into the model."""
    module_name, _, name = parameter.name.rpartition(".")
    module = model.get_submodule(module_name)
    matrix = len(parameter.shape) == 2 and name == "weight" and module_name != "positions"
    if packed and matrix and parameter.shape[1] % 32 == 0:
        _fill_packed(model, module_name, module, source, parameter)
        return
    if packed and isinstance(module, Experts) and name in ("up", "down") and parameter.shape[2] % 32 == 0:
        module.pack(name, _packed_experts(source, parameter))
        return
    dtype = torch.float32 if isinstance(module, Norm) else floating  # norms stay exact: they are small
    _assign(module, name, torch.from_numpy(read_parameter(source, parameter)).to(device, dtype))


def _native_kind(source: Source, parameter: Parameter) -> QuantType | None:
    """The kernels' name of the block type of all of a parameter's tensors; None for other types or mixtures."""
    kinds = {_PACKED.get(source.kind(tensor)) for tensor in parameter.tensors}
    return kinds.pop() if len(kinds) == 1 else None


def _blocks(source: Source, tensor: FileTensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.rows_from_file(source.mapped(tensor).data))


def _packed_experts(source: Source, parameter: Parameter) -> list[PackedMatrix]:
    """A matrix per expert, in the file's blocks if the kernels support them."""
    kind, (count, _, columns) = _native_kind(source, parameter), parameter.shape
    if kind is None:
        return [PackedMatrix.pack_float(matrix) for matrix in torch.from_numpy(read_parameter(source, parameter))]
    stacked = np.concatenate(
        [_blocks(source, tensor).reshape(count, tensor.shape[1], -1) for tensor in parameter.tensors], 1
    )
    return [PackedMatrix.pack(kind, blocks, columns) for blocks in stacked]


def _fill_packed(model: Model, name: str, module: nn.Module, source: Source, parameter: Parameter) -> None:
    kind = _native_kind(source, parameter)
    if kind is not None:
        blocks = [_blocks(source, tensor) for tensor in parameter.tensors]
        stacked = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        matrix = PackedMatrix.pack(kind, stacked, parameter.shape[1])
    else:
        matrix = PackedMatrix.pack_float(torch.from_numpy(read_parameter(source, parameter)))
    if module is model.embedding:
        model.embedding = PackedEmbedding(matrix)
        if model.spec.tied:
            model.head = PackedLinear(matrix, None)
        return
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, PackedLinear(matrix, getattr(module, "bias", None)))


def _assign(module: nn.Module, name: str, values: Tensor) -> None:
    setattr(module, name, nn.Parameter(values, requires_grad=False))


def _precision(model: Model) -> str:
    kinds = [m.matrix.kind for m in model.modules() if isinstance(m, (PackedLinear, PackedEmbedding))]
    if not kinds:
        return str(model.dtype).removeprefix("torch.")
    return " + ".join(sorted(set(kinds)))


def _check_memory(source: Source, packed: bool, floating: torch.dtype) -> None:
    """Raise an error, before allocating, if a model does not fit in free memory."""
    numbers = sum(math.prod(parameter.shape) for parameter in source.parameters)
    a_number = 1.07 if packed else floating.itemsize  # packed: 8.5 bits, the larger of the kinds
    needed, free = int(numbers * a_number), free_memory()
    if free is not None and needed > free:
        raise RunError(
            f"{source.path}: {numbers:,} parameters need {needed / 1e9:.1f} GB as"
            f" {'8-bit blocks' if packed else str(floating).removeprefix('torch.')}, and {free / 1e9:.1f} GB are free."
            " Use a smaller model" + ("" if packed else ", or --dtype int8")
        )
