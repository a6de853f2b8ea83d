"""Small shapes of every family, for tests that build and run them."""

from __future__ import annotations

from typing import Any

from nextword.spec import ExpertsSpec, ModelSpec

_BASE: dict[str, Any] = {
    "kind": "transformer", "vocabulary": 512, "width": 128, "layers": 3, "context": 128, "heads": 8, "kv_heads": 2,
    "head_width": 16, "mlp_width": 320,
}  # fmt: skip
_PLAIN: dict[str, Any] = {"norm": "layer", "mlp": "plain", "activation": "gelu", "kv_heads": 8}
_BIASES: dict[str, Any] = {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}
FAMILIES: dict[str, ModelSpec] = {
    name: ModelSpec(**(_BASE | changes))
    for name, changes in {
        "llama": {},
        "llama with wide heads": {"head_width": 64, "tied": False},
        "gpt2": _PLAIN | _BIASES | {"position": "learned"},
        "gpt_neox": _PLAIN | _BIASES | {"parallel": True, "tied": False},
        "no biases": _PLAIN | {"norm_bias": False},
        "qwen2": {"attention_bias": True},
        "qwen3": {"qk_norm": "head"},
        "olmo2": {"qk_norm": "full", "norm_place": "after", "tied": False},
        "gemma2": {"norm_place": "both", "attention_softcap": 50.0, "logit_softcap": 30.0, "embedding_scale": 11.0,
                   "windows": (16, 0, 16), "activation": "gelu_tanh"},
        "gemma3": {"norm_place": "both", "qk_norm": "head", "windows": (16, 16, 0), "activation": "gelu_tanh"},
        "smollm3": {"rope_layers": (True, False, True)},
        "mistral": {"windows": (32, 32, 32), "tied": False},
    }.items()
}  # fmt: skip
# counted exactly, but trained in plain PyTorch, whose activations are not planned
MORE: dict[str, ModelSpec] = {
    name: ModelSpec(**(_BASE | changes))
    for name, changes in {
        "granite": {"residual_scale": 0.5, "logit_scale": 0.25, "embedding_scale": 3.0},
        "mixtral": {"experts": ExpertsSpec(4, 2, 160)},
        "gpt_oss": {"experts": ExpertsSpec(4, 2, 160, bias=True), "attention_sinks": True, "windows": (16, 0, 16),
                    "activation": "swiglu_clamped", "tied": False},
    }.items()
}  # fmt: skip
