"""Optimizers and their parameter groups; Muon and Lion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..plan.run_config import TrainConfig
from .distributed import by_mesh

_MUON_STEPS = ((3.4445, -4.7750, 2.0315),) * 5  # Jordan et al. 2024: a polynomial that lifts singular values to about 1
_EPS = 1e-8


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The run's optimizer over the trained parameters of `model`.

    Weight decay applies to matrices, not to vectors (norms, biases). With "muon", the layers' matrices use
    Muon; embedding, head and vectors use AdamW.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in trained if p.ndim >= 2]
    vectors = [p for _, p in trained if p.ndim < 2]
    decays = ((matrices, config.weight_decay), (vectors, 0.0))
    groups = [{"params": group, "weight_decay": decay} for kind, decay in decays for group in by_mesh(kind)]
    if config.optimizer == "adamw":
        fused = _fusable(matrices)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=_EPS, fused=fused)
    if config.optimizer == "muon":
        return Muon(_muon_groups(trained, config), lr=config.learning_rate)
    if config.optimizer == "lion":
        return Lion(groups, lr=config.learning_rate, betas=config.betas)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    momentum = 0.9 if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=momentum)


def _fusable(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and torch.is_floating_point(p) for p in parameters)


def _muon_groups(trained: list[tuple[str, nn.Parameter]], config: TrainConfig) -> list[dict[str, Any]]:
    inner = [p for name, p in trained if p.ndim == 2 and not _is_end(name)]
    ends = [p for name, p in trained if p.ndim == 2 and _is_end(name)]
    vectors = [p for _, p in trained if p.ndim != 2]
    adam = {"betas": config.betas, "muon": False}
    groups = [
        {"params": inner, "muon": True, "weight_decay": config.weight_decay},
        {"params": ends, "weight_decay": config.weight_decay, **adam},
        {"params": vectors, "weight_decay": 0.0, **adam},
    ]
    return [group for group in groups if group["params"]]


def _is_end(name: str) -> bool:
    """Whether it is an embedding or the head, whose rows are tokens and should not be orthogonalised."""
    return any(part in ("embedding", "positions", "head") for part in name.split("."))


def newton_schulz(matrix: Tensor) -> Tensor:
    """`matrix` (rows, columns) with all singular values near 1, in the matrix's own precision.

    Jordan et al. 2024, "Muon": five steps of X ← aX + (bA + cA²)X with A = XXᵀ, from X = M / |M|.
    """
    x = matrix.t() if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for a, b, c in _MUON_STEPS:
        square = x @ x.t()
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.t() if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the groups marked `muon`; AdamW for the others.

    The step of a matrix is scaled by 0.2 √max(rows, columns), so that AdamW's learning rate fits both
    (Liu et al. 2025, 2502.16982, eq. 4).
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": (0.9, 0.95), "weight_decay": 0.0, "muon": False}
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = self._muon if group["muon"] else self._adam
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])  # Nesterov
        scale = 0.2 * max(parameter.shape) ** 0.5
        parameter.add_(newton_schulz(ahead.float()).to(parameter.dtype), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            zeros = torch.zeros_like
            state |= {"step": torch.tensor(0.0), "exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter)}
        state["step"] += 1
        (b1, b2), step = group["betas"], float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - b1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - b2)
        root = (state["exp_avg_sq"] / (1 - b2**step)).sqrt_().add_(_EPS)
        parameter.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - b1**step))


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, 2302.06675, algorithm 2), at a third of AdamW's rate."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(list(groups), {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.sign(parameter.grad.lerp(state["exp_avg"], b1)), alpha=-group["lr"])
                state["exp_avg"].lerp_(parameter.grad, 1 - b2)
