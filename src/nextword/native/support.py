"""Which models the compiled layers support."""

from __future__ import annotations

from ..spec import ModelSpec
from .bindings import available


def unsupported(spec: ModelSpec) -> str:
    """The features of a model that the compiled layers do not support; "" if none."""
    needs = {
        "a mixture of experts": spec.experts is not None,
        "latent attention": spec.latent is not None,
        "clamped SwiGLU": spec.activation == "swiglu_clamped",
    }
    return ", ".join(name for name, needed in needs.items() if needed)


def description(spec: ModelSpec) -> str:
    """How a model runs on this machine's CPU, in float32 or in quantized blocks."""
    if not available():
        return "PyTorch: the compiled kernels were not built"
    if missing := unsupported(spec):
        return f"PyTorch with compiled products and norms: the kernels do not run {missing}"
    return "compiled CPU kernels, all layers in one call"
