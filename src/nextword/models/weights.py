"""PyTorch models ↔ files of weights: for training, GPUs, and as the reference of runtime/."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..base import RunError, free_memory
from ..text import Tokenizer
from ..weights.conversion import ModelData, write_data
from ..weights.source import Source, read_parameter
from .factory import build
from .layers import Norm
from .model import Model


def load_torch_model(source: Source, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """The model of an opened source, in evaluation mode and without gradients; quantized weights are dequantized.

    Raises RunError if it does not fit in a CPU's free memory.
    """
    device = torch.device(device)
    _check_memory(source, dtype, device)
    with torch.device("meta"):
        model = build(source.spec)
    for parameter in source.parameters:
        _fill(model, parameter.name, read_parameter(source, parameter), dtype, device)
    if source.spec.tied:
        model.head.weight = model.embedding.weight
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # GPU kernels need them contiguous
    return model.requires_grad_(False).eval()


def _fill(model: Model, name: str, values: NDArray[np.float32], dtype: torch.dtype, device: torch.device) -> None:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    kept = torch.float32 if isinstance(module, Norm) else dtype  # norms stay exact: they are small
    tensor = torch.from_numpy(values).to(device, kept)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _check_memory(source: Source, dtype: torch.dtype, device: torch.device) -> None:
    numbers = sum(math.prod(parameter.shape) for parameter in source.parameters)
    needed, free = numbers * dtype.itemsize, free_memory()
    if device.type == "cpu" and free is not None and needed > free:
        raise RunError(
            f"{source.path}: {numbers:,} parameters need {needed / 1e9:.1f} GB as"
            f" {str(dtype).removeprefix('torch.')}, and {free / 1e9:.1f} GB are free. Use a smaller model"
        )


class ModelArrays(Mapping[str, NDArray[np.float32]]):
    """A model's parameters as float32 arrays by name, without a tied head: views of float32 parameters on a CPU."""

    def __init__(self, model: Model) -> None:
        self._parameters = dict(model.named_parameters())

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._parameters[name].detach().float().cpu().numpy()
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def write_model(
    out: Path | str, model: Model, tokenizer: Tokenizer, dtype: str = "float32", force: bool = False
) -> Path:
    """Write a model in memory and its tokenizer as `out`; see `weights.conversion.write_data`."""
    return write_data(out, ModelData(model.spec, ModelArrays(model), tokenizer), dtype, force)
