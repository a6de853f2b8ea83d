"""Random models in PyTorch and the CPU backend over their memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nextword.models import Model, build
from nextword.runtime import CpuBackend
from nextword.spec import ExpertsSpec, ModelSpec

LLAMA = ModelSpec("transformer", 50, 64, 2, 2048, heads=6, kv_heads=2, head_width=16, mlp_width=96)
SPECS = {
    "llama": LLAMA,
    "one key head, odd widths": replace(LLAMA, width=36, heads=11, kv_heads=1, head_width=6, mlp_width=50),
    "every head its own keys": replace(LLAMA, kv_heads=6),
    "many heads a group": replace(LLAMA, heads=20, kv_heads=1, head_width=8),
    "wide heads": replace(LLAMA, heads=2, kv_heads=1, head_width=136),
    "neox": replace(LLAMA, norm="layer", parallel=True, mlp="plain", activation="gelu", attention_bias=True,
                    attention_out_bias=True, mlp_bias=True),
    "gpt2": replace(LLAMA, norm="layer", mlp="plain", activation="gelu_tanh", attention_bias=True, position="learned",
                    attention_out_bias=True, mlp_bias=True, norm_bias=False),
    "gemma": replace(LLAMA, norm_place="both", activation="gelu_tanh", attention_softcap=3.0, qk_norm="head",
                     windows=(5, 0), attention_scale=0.3, logit_softcap=4.0, embedding_scale=8.0),
    "olmo": replace(LLAMA, norm_place="after", qk_norm="full"),
    "long window": replace(LLAMA, windows=(300, 0)),
    "granite": replace(LLAMA, residual_scale=0.22, logit_scale=3.0),
    "scaled after norms": replace(LLAMA, residual_scale=0.22, norm_place="both"),
    "smollm3": replace(LLAMA, rope_layers=(True, False)),
    "sinks": replace(LLAMA, attention_sinks=True, windows=(5, 0)),
    "untied with bias": replace(LLAMA, tied=False, head_bias=True),
    "mixtral": replace(LLAMA, experts=ExpertsSpec(4, 2, 48)),
    "qwen3 moe": replace(LLAMA, experts=ExpertsSpec(7, 3, 20, normalize=False), qk_norm="head"),
    "gpt-oss": replace(LLAMA, experts=ExpertsSpec(5, 2, 48, bias=True, dense_layers=1), activation="swiglu_clamped"),
    "experts in parallel": replace(LLAMA, experts=ExpertsSpec(4, 1, 48), parallel=True, norm_place="both"),
    "rnn": ModelSpec("rnn", 43, 20, 2, 64),
    "lstm": ModelSpec("lstm", 43, 24, 2, 64, tied=False, head_bias=True),
    "gru": ModelSpec("gru", 43, 17, 3, 64),
}  # fmt: skip


def model_of(spec: ModelSpec, seed: int = 0) -> Model:
    """With weights, norms and biases large enough for logits that are far from flat."""
    model = build(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        vector = parameter.dim() == 1
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter + 0.2 * noise if vector else noise * 1.2 / parameter.shape[-1] ** 0.5)
    return model


def arrays_of(model: Model) -> dict[str, Any]:
    """The model's parameters, sharing its memory."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def backend_over(model: Model, **options: Any) -> CpuBackend:
    return CpuBackend.from_arrays(model.spec, arrays_of(model), **options)


def texts(count: int, length: int, vocabulary: int = 43) -> torch.Tensor:
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


def random_ids(count: int, below: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, count)
