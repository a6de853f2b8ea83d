"""Chooses how a model is trained; the only place that knows the training kernels' limits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import native
from ..plan.compute import Recompute
from .fused_recurrent import EAGER_CELLS
from .kernel_layers import (
    EAGER_CLASSES,
    CausalAttention,
    FusedAttention,
    FusedBlock,
    FusedMLP,
    FusedRMSNorm,
    RopeAttention,
)
from .layers import Linear, Norm
from .model import EAGER, Execution, Mode, Model
from .recurrent import Recurrent
from .transformer import MLP, Attention, Block, Transformer


def prepare(
    model: Model, mode: Mode, *, dropout: float = 0.0, recompute: Recompute = "none",
    compiled: bool = False,
) -> Execution:  # fmt: skip
    """Switch `model` to the fastest way to compute it; returns it, and stores it as `model.execution`.

    mode: "train", or "eager" for plain PyTorch, as returned by `build`. The options are for training: the dropout rate,
    which activations to recompute in the backward pass, and whether to run under torch.compile.

    Modules, parameters and names stay the same: only module classes change, as in PyTorch's `fully_shard`. Call it
    again after changing device, dtype, modules (adapters) or hooks.
    """
    for module in model.modules():
        _become(module, (EAGER_CLASSES | EAGER_CELLS).get(type(module), type(module)))
    model.set_regularization(dropout, recompute)
    model.execution = _for_training(model, recompute, compiled) if mode == "train" else EAGER
    return model.execution


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def _for_training(model: Model, recompute: Recompute, compiled: bool) -> Execution:
    if isinstance(model, Recurrent) and not compiled and _readable_everywhere(model):
        for fused, eager in EAGER_CELLS.items():
            if is_unmodified(model.recurrent, eager):
                _become(model.recurrent, fused)
    if compiled or not isinstance(model, Transformer) or not _fits_kernels(model):
        return Execution("train", f"PyTorch ({_device_and_dtype(model)}{', compiled' * compiled})")
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    kept = [] if recompute == "selective" else blocks  # which looks for torch's products and attention, to keep them
    whole = [block for block in kept if _fusable(block)]
    for block in kept:
        _fuse_parts(model, block)
    for block in whole:
        _become(block, FusedBlock)
    norms = [module for module in model.modules() if _is_rms_norm(module)]
    for norm in norms:
        _become(norm, FusedRMSNorm)
    what = f"{len(whole)} of {len(blocks)} layers fused" if whole else f"{len(norms)} norms fused"
    return Execution("train", f"PyTorch with compiled CPU kernels, {what}")


def _fuse_parts(model: Transformer, block: Block) -> None:
    attention, mlp = block.attention, block.mlp
    if is_unmodified(attention, Attention):
        rotated = model.rope_of(attention.layer) is not None and attention.qk_norm == "none"
        rope = rotated and is_unmodified(attention.qkv, Linear)
        causal = not attention.needs_mask and attention.head_width % 8 == 0 and attention.head_width <= WIDEST_HEAD
        _become(attention, _ATTENTION[rope, causal])
    if isinstance(mlp, MLP) and _fusable_mlp(mlp):
        _become(mlp, FusedMLP)


WIDEST_HEAD = 256  # beyond it, blocks of keys and values leave the second-level cache
_ATTENTION = {  # whether rope is fused, whether attention is
    (False, False): Attention, (False, True): CausalAttention,
    (True, False): RopeAttention, (True, True): FusedAttention,
}  # fmt: skip


def _fusable(block: Block) -> bool:
    """Whether each norm immediately precedes a matrix product and each sum follows one."""
    attention, mlp = block.attention, block.mlp
    if block.parallel or block.residual_scale is not None or block.dropout.p or not isinstance(mlp, MLP):
        return False
    return (
        is_unmodified(block, Block)
        and is_unmodified(attention, Attention)
        and all(_is_rms_norm(norm) for norm in (block.attention_norm, block.mlp_norm))
        and all(is_unmodified(norm, nn.Identity) for norm in (block.attention_post_norm, block.mlp_post_norm))
        and all(is_unmodified(matrix, Linear) for matrix in (attention.qkv, attention.out, mlp.up))
        and not attention.out.has_bias
        and not mlp.up.has_bias
        and _fusable_mlp(mlp)
    )


def _fusable_mlp(mlp: MLP) -> bool:
    swiglu = mlp.spec.mlp == "gated" and mlp.spec.activation == "silu"
    return swiglu and is_unmodified(mlp, MLP) and is_unmodified(mlp.down, Linear) and not mlp.down.has_bias


def is_unmodified(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is exactly a `kind`, not replaced (as by adapters), and has no hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks)


def _is_rms_norm(module: nn.Module) -> bool:
    return isinstance(module, Norm) and module.rms and is_unmodified(module, Norm)


def _fits_kernels(model: Model) -> bool:
    """Whether the compiled kernels are available and can read the model."""
    return native.available() and _readable_everywhere(model)


def _readable_everywhere(model: Model) -> bool:
    """Whether the model is float32 on a CPU."""
    return model.dtype == torch.float32 and all(map(_readable, model.parameters()))


def _readable(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter)  # subclasses may have their data elsewhere, or none
    return plain and tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _device_and_dtype(model: Model) -> str:
    return f"{model.device}, {str(model.dtype).removeprefix('torch.')}"
