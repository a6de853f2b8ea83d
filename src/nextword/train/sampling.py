"""Samples from a model in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import native
from ..backend import Backend
from ..engine import Engine, Request, SamplingParams, StopConfig
from ..families.names import Names
from ..models import Model
from ..models.backend import TorchBackend
from ..runtime import CpuBackend
from ..text import Tokenizer

_TOKENS = 40  # of a sample


def sample(model: nn.Module, tokenizer: Tokenizer, prompt: str, context: int) -> str:
    """`prompt` as the model, in eval mode, goes on with it within `context` tokens, on one line."""
    ids = tokenizer.encode(prompt) if prompt else [min(tokenizer.stop_ids, default=0)]
    ids = ids[-max(1, context - _TOKENS) :]
    stop = StopConfig(min(_TOKENS, max(1, context - len(ids) - 1)))
    backend = backend_of(model)
    pages = -(-(len(ids) + _TOKENS) // backend.page_size) + 2  # of a recurrent state, snapshots
    engine = Engine(backend, tokenizer, cache_bytes=pages * backend.page_bytes)  # the run's memory is measured
    tokens = engine.submit(Request(tuple(ids), SamplingParams(temperature=0.8, seed=0), stop))
    return " ".join((prompt + "".join(token.text for token in tokens)).split())


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
