"""LoRA: low-rank adapters next to frozen weights (Hu et al. 2021, 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import UsageError
from ..families import Family
from ..models.layers import Layer, Linear
from ..spec import ModelSpec
from .loss_module import seeded

SCALE = 2.0  # alpha / rank


class LoRALinear(Layer):
    """y = x Wᵀ + 2 (x Aᵀ) Bᵀ; W frozen, A (rank, in) random, B (out, rank) zero, so that training starts from W."""

    def __init__(self, base: Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen product is accumulated onto the adapter's, so that both are rounded once.

        In 16 bits, `base(x) + adapter` would round twice, and lose most of a small adapter's contribution: the model
        in training would differ from the merged one.
        """
        learnt = SCALE * F.linear(F.linear(x, self.down), self.up)
        if self.base.bias is not None:
            learnt = learnt + self.base.bias
        flat = torch.addmm(learnt.flatten(0, -2), x.flatten(0, -2), self.base.weight.t())
        return flat.view(learnt.shape)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The frozen matrix with the adapter merged."""
        self.base.weight += SCALE * (self.up @ self.down)
        return self.base


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze `model` and add adapters of `rank` to every matrix of its layers. Raises UsageError if it has none."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise UsageError("LoRA adapts the matrices of a transformer's layers; train this model without it")
    model.requires_grad_(False)
    with seeded(seed):
        for parent in list(blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Linear):
                    setattr(parent, name, LoRALinear(child, rank))


def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters into the matrices, which makes `model` a plain one again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def peft_adapters(
    model: nn.Module, spec: ModelSpec, family: Family, base: str
) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
    """The adapters as peft has them: its configuration, and its tensors for the matrices of `base`, of `family`.

    Matrices that are one here and several there (query, key and value) share the adapter's first matrix.
    Raises UsageError for a mixture of experts, for which peft has no form.
    """
    if spec.experts:
        raise UsageError("adapters of a mixture of experts have no form in peft; export the merged model instead")
    names, tensors, targets, transposed, rank = family.names, dict[str, NDArray[Any]](), set[str](), False, 0
    for parameter in names.parameters(spec):
        layer = model.get_submodule(parameter.name.rpartition(".")[0])
        if not isinstance(layer, LoRALinear) or not parameter.name.endswith(".weight"):
            continue
        down, up = (values.detach().float().cpu().numpy() for values in (layer.down, layer.up))
        rank = len(down)
        for tensor in parameter.tensors:
            path = (names.prefixes[0] + tensor.name).removesuffix(".weight")
            tensors[f"base_model.model.{path}.lora_A.weight"] = down
            rows = np.ascontiguousarray(tensor.rows_to_file(up[tensor.index]))
            tensors[f"base_model.model.{path}.lora_B.weight"] = rows
            targets.add(path.rpartition(".")[2])
            transposed |= tensor.transposed
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.removeprefix("hf:"),
        "r": rank, "lora_alpha": SCALE * rank, "target_modules": sorted(targets), "bias": "none", "lora_dropout": 0.0,
        "fan_in_fan_out": transposed, "inference_mode": True,
    }, tensors  # fmt: skip
