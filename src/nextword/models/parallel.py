"""Tensor parallelism: several processes share the matrices of each layer (Shoeybi et al. 2019, 1909.08053).

Queries, keys and values are one matrix here, and so are gate and up. Each process holds a stretch of its rows, as the
layouts of DTensor have it, and sends what it computes to the processes that have the heads it belongs to.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..base import UsageError
from ..spec import ModelSpec
from .transformer import Transformer


def check_tensor_parallel(spec: ModelSpec, processes: int) -> None:
    """Raise UsageError if `processes` cannot share the layers of the model."""
    plain = spec.kind == "transformer" and not spec.experts and spec.qk_norm == "none" and not spec.attention_sinks
    if processes > 1 and not plain:
        raise UsageError("train.tensor_parallel shares plain attention and MLPs; use train.shard=fsdp for this model")
    for name in ("heads", "kv_heads", "mlp_width"):
        if (size := getattr(spec, name)) % processes:
            raise UsageError(f"train.tensor_parallel={processes} does not divide the model's {name}, {size:,}")


def parallelize(model: Transformer, mesh: Any) -> None:
    """Divide each layer's matrices among the processes of the one-dimensional DeviceMesh `mesh`.

    Call it before `prepare`, which then chooses plain layers: the compiled kernels read whole matrices.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # advice for torch's users
    plan = {"attention.qkv": ColwiseParallel(), "attention.out": RowwiseParallel(),
            "mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel()}  # fmt: skip
    for block in model.blocks:
        attention: Any = block.attention
        rows = [heads * attention.head_width for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
        parallelize_module(block, mesh, plan)
        attention.heads //= mesh.size()
        attention.kv_heads //= mesh.size()
        attention.qkv.register_forward_hook(_Exchange(rows, mesh))
        if model.spec.mlp == "gated":
            mlp: Any = block.mlp
            mlp.up.register_forward_hook(_Exchange([model.spec.mlp_width] * 2, mesh))


class _Exchange:
    """Turns each process's stretch of the columns of several matrices side by side into its share of each."""

    def __init__(self, widths: list[int], mesh: Any) -> None:
        processes, rank = mesh.size(), mesh.get_local_rank()
        wanted = torch.cat([torch.arange(width) // (width // processes) for width in widths]).view(processes, -1)
        self.group = mesh.get_group()
        self.order = wanted[rank].argsort(stable=True).to(mesh.device_type)  # by the process that wants a column
        self.sent = wanted[rank].bincount(minlength=processes).tolist()
        self.received = (wanted == rank).sum(1).tolist()

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        columns = output.movedim(-1, 0)[self.order]
        received: Tensor = all_to_all_single_autograd(columns, self.received, self.sent, self.group)
        return received.movedim(0, -1).contiguous()
