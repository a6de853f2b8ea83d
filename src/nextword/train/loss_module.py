"""The model wrapped for training: tokens and targets → summed loss."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data import IGNORED, Batch
from ..models import Model
from ..plan import RunConfig
from ..plan.run_config import TrainConfig
from ..spec import ModelSpec
from .loss import single_losses, summed_loss, summed_loss_of_logits

AUTOCAST_DTYPE = {"amp": torch.bfloat16}
_DRAWING = threading.Lock()  # torch has one generator for all threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator as `seed` has it, one thread at a time, and leave the generator as it was."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def new_model(config: RunConfig) -> Model:
    """A freshly initialised model of the run, determined by the seed."""
    with seeded(config.train.seed):
        model = models.build(config.spec)
        if config.spec.kind == "transformer":
            _initialise(model, config.spec)
    return model


def prepare(model: Model, train: TrainConfig, compiled: bool = False) -> None:
    """Prepare `model`, on its device and with its adapters, for training, with torch.compile if configured."""
    models.prepare(
        model, "train", dropout=train.dropout, recompute=train.recompute,
        compiled=compiled,
    )  # fmt: skip


def _initialise(model: nn.Module, spec: ModelSpec) -> None:
    """Normal(0, 0.02); projections onto the residual stream are scaled by 1/√(2 layers) (GPT-2, section 2.3)."""
    residual = 0.02 / (2 * spec.layers) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            adds = name.endswith(("attention.out.weight", "mlp.down.weight", "mlp.down"))
            nn.init.normal_(parameter, std=residual if adds else 0.02)


@dataclass(frozen=True)
class Placed:
    """A batch on its device."""

    inputs: Tensor  # (rows, context)
    targets: Tensor  # (rows, context)
    documents: Tensor | None

    @property
    def counted(self) -> int:
        """The number of targets that are not ignored."""
        return int((self.targets != IGNORED).sum())

    def rows(self, start: int, end: int) -> Placed:
        """A slice of the rows."""
        documents = None if self.documents is None else self.documents[start:end]
        return Placed(self.inputs[start:end], self.targets[start:end], documents)


def place(batch: Batch, device: torch.device) -> Placed:
    """A numpy batch as tensors on `device`."""

    def move(values: Any) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    documents = None if batch.documents is None else move(batch.documents)
    return Placed(move(batch.inputs), move(batch.targets), documents)


class LossModule(nn.Module):
    """Wraps a model so that its forward pass is the loss; DDP and FSDP wrap this."""

    def __init__(self, model: nn.Module, dtype: str = "fp32") -> None:
        super().__init__()
        self.model = model
        self.product_type = AUTOCAST_DTYPE.get(dtype)

    def forward(self, batch: Placed, state: Any = None, each_target: bool = False) -> Tensor:
        """Summed loss of a batch in nats, float32 scalar; a given state is updated in place.

        With `each_target`, the loss of every target instead, flat, 0 for ignored ones, without gradients.
        """
        model: Any = self.model
        given = {"state": state, "documents": batch.documents}
        extra = {name: value for name, value in given.items() if value is not None}
        with torch.autocast(batch.inputs.device.type, dtype=self.product_type, enabled=self.product_type is not None):
            hidden = model.hidden(batch.inputs, **extra)
            spec: ModelSpec = model.spec
            if spec.head_bias or spec.logit_scale or spec.logit_softcap or not isinstance(model.head, nn.Linear):
                return summed_loss_of_logits(model.logits(hidden), batch.targets, "none" if each_target else "sum")
        loss = single_losses if each_target else summed_loss
        return loss(hidden, model.head.weight, batch.targets, self.product_type)
