"""A model with its optimizer: gradients of a batch, and updates; used by every training loop."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..models.parallel import parallelize
from ..plan import RunConfig
from .distributed import Process, by_mesh, device_mesh, share
from .loss_module import LossModule, Placed, prepare
from .optimizers import make_optimizer


class Learner:
    """Trains `model` on `device`, in one or several processes."""

    def __init__(
        self, config: RunConfig, model: Any, device: torch.device,
        process: Process = Process(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        self.config, self.process, self.device = config.train, process, device
        self.model: Any = model.to(device)
        mesh = device_mesh(self.config.shard, process, device)
        if process.tensor > 1:
            parallelize(self.model, mesh["tensor"])
        prepare(self.model, self.config, config.run.compile)
        self.loss_module: nn.Module = share(LossModule(self.model, self.config.dtype), mesh, device)
        self._averaged_over = process.world if hasattr(self.loss_module, "no_sync") else 1  # by DDP
        self.loss_module.train()
        self.optimizer = make_optimizer(self.model, self.config)
        self.states: list[Any] | None = self._fresh_states() if self.config.stateful else None

    def backward(self, batch: Placed, counted: int) -> Tensor:
        """Accumulate gradients of the batch's summed loss / `counted` over micro-batches; returns the sum in nats."""
        rows = batch.inputs.shape[0]
        size = min(self.config.micro_batch, rows)
        nats = torch.zeros((), device=self.device)
        for start in range(0, rows, size):
            state = None if self.states is None else self.states[start // size]
            with self._synchronised(last=start + size >= rows):
                loss = self.loss_module(batch.rows(start, min(start + size, rows)), state)
                (loss * self._averaged_over / max(1, counted)).backward()
            nats += loss.detach()
        if self.states is not None:
            self.states = [state.detach() for state in self.states]
        return nats

    def digest(self, batch: Placed) -> bytes:
        """A hash of the clipped gradients of a batch, which are dropped. One process; on a CPU."""
        self.backward(batch, batch.targets.numel())
        found = hashlib.blake2b(str(self.clip()).encode())
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                found.update(parameter.grad.contiguous().view(torch.uint8).numpy())
        self.zero_grad()
        return found.digest()

    def _synchronised(self, last: bool) -> Any:
        """Synchronize gradients with other processes only after the last micro-batch.

        Shards are summed within their group after each: to wait would take memory for whole gradients.
        """
        module: Any = self.loss_module
        if hasattr(module, "set_requires_all_reduce"):  # an FSDPModule, whose import takes a second
            module.set_requires_all_reduce(last)  # between the copies of hybrid sharding
        elif self.process.world > 1 and not last:
            return module.no_sync()
        return nullcontext()

    def clip(self) -> float:
        """Clip the gradients; returns their norm before clipping."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if not parameters:
            return 0.0
        groups = by_mesh(parameters)
        norms = [_gradient_norm(group) for group in groups]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        for group in groups:
            nn.utils.clip_grads_with_norm_(group, self.config.grad_clip or math.inf, norm)
        return float(norm)

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the following updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Update the weights, and drop the gradients."""
        self.optimizer.step()
        self.zero_grad()

    def state_tensors(self) -> dict[str, Tensor] | None:
        """The recurrent state of each micro-batch that is carried to the next step, by name."""
        if self.states is None:
            return None
        hidden = {f"{number}.hidden": state.hidden for number, state in enumerate(self.states)}
        cells = {f"{number}.cell": state.cell for number, state in enumerate(self.states) if state.cell is not None}
        return hidden | cells

    def _fresh_states(self) -> list[Any]:
        rows, size = self.config.batch_size, min(self.config.micro_batch, self.config.batch_size)
        return [self.model.new_state(min(size, rows - start)) for start in range(0, rows, size)]


def _gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of the gradients of a group of `by_mesh`, over all processes."""
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    if not hasattr(gradients[0], "device_mesh"):
        return nn.utils.get_total_norm(gradients)
    square = nn.utils.get_total_norm([gradient.to_local() for gradient in gradients]).square()
    for dimension, placement in enumerate(gradients[0].placements):
        if not placement.is_replicate():
            dist.all_reduce(square, group=gradients[0].device_mesh.get_group(dimension))
    return square.sqrt()
