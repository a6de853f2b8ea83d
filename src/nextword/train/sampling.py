"""Samples from a model in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import native
from ..backend import Backend
from ..families.names import Names
from ..models import Model
from ..models.backend import TorchBackend
from ..runtime import CpuBackend


def backend_of(model: nn.Module) -> Backend:
    """A backend over the model's own memory: the compiled kernels for float32 on a CPU, otherwise its modules."""
    assert isinstance(model, Model)
    parameters = dict(model.named_parameters())
    own = {parameter.name for parameter in Names({}).parameters(model.spec)}  # others: adapters
    if native.available() and parameters.keys() == own and all(map(_readable, parameters.values())):
        arrays = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
        return CpuBackend.from_arrays(model.spec, arrays)
    return TorchBackend(model)


def _readable(tensor: Tensor) -> bool:
    plain = type(tensor) is nn.Parameter  # subclasses may have their data elsewhere, or none
    return plain and tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
