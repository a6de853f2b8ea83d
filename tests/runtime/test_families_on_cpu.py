"""The CPU backend against the same model in PyTorch, for every family, from folders and from GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from family_cases import CASES, saved
from family_gguf import ARCHITECTURES, saved_gguf
from gguf_files import MAPPED, write_llama
from nextword import native
from nextword.models import Model
from nextword.models.layers import Linear
from nextword.models.weights import load_torch_model
from nextword.runtime import CpuBackend, load_backend
from nextword.runtime.weights import SourceWeights
from nextword.weights.loading import open_source
from nextword.weights.source import Source
from paged import Paged, grow

pytest.importorskip("transformers")
# Quantized matrices round the activations to eight bits; the reference, which multiplies with the same weights, does
# not. Of the root mean square of the logits this is 0.2 to 1.5% in these random models.
ACTIVATIONS = 0.03
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def texts(count: int, length: int, vocabulary: int = 97) -> torch.Tensor:
    return torch.randint(1, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def error_of(backend: CpuBackend, model: Model, tokens: torch.Tensor) -> float:
    """Largest difference between the logits of texts that grow side by side and the model's, of its largest logit."""
    expected = model(tokens)
    assert expected.std() > 0.1  # a flat output would agree with anything
    return float((grow(Paged(backend), tokens) - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def rms_error_of(backend: CpuBackend, model: Model, tokens: torch.Tensor) -> float:
    """The root mean square of the differences, of that of the logits."""
    expected = model(tokens)
    return float((grow(Paged(backend), tokens) - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(saved(CASES[request.param], tmp_path_factory.mktemp("model"))[1])


def test_logits_of_a_float32_folder_equal_pytorchs(folder: Source) -> None:
    backend = load_backend(folder)
    assert backend.kv_dtype == "float32"
    assert error_of(backend, load_torch_model(folder), texts(3, 50)) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_a_gguf_equal_pytorchs(name: str, tmp_path: Path) -> None:
    saved_gguf(ARCHITECTURES[name], tmp_path / "tiny.gguf")
    source = open_source(tmp_path / "tiny.gguf")
    assert error_of(load_backend(source), load_torch_model(source), texts(3, 50)) < 1e-4


@torch.no_grad()
def rounded(model: Model, dtype: str) -> Model:
    """The same model with its matrices rounded as `load_backend` rounds them."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "bias" in name or "router" in name or name == "positions.weight":
            continue
        kind = gguf.GGMLQuantizationType[{"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]]
        stored = gguf.quants.quantize(parameter.flatten(0, -2).numpy(), kind)
        parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)).view_as(parameter))
    return model


def rounded_activations(x: torch.Tensor) -> torch.Tensor:
    """`x` (..., width) as the kernels round it: a scale per 256 columns, times 1 to 15 for each 32 of them."""
    parts = []
    for columns in x.split(256, -1):
        blocks = columns.unflatten(-1, (-1, 32))
        largest = blocks.abs().amax(-1, keepdim=True)
        unit = largest.amax(-2, keepdim=True) / (127 * 15)
        scale = unit * (largest / (127 * unit)).ceil().clamp(1, 15)
        parts.append(((blocks / scale).round() * scale).flatten(-2))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "q8_0"])
def test_converted_weights_are_those_that_the_gguf_package_computes(folder: Source, dtype: Any) -> None:
    if dtype == "q8_0" and folder.spec.experts:
        pytest.skip("rounded activations may choose other experts")
    model = rounded(load_torch_model(folder), dtype)
    for module in model.modules():
        if dtype == "q8_0" and isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded_activations(inputs[0]),))
    error = rms_error_of(load_backend(folder, dtype, "float32"), model, texts(2, 40))
    assert error < (0.02 if dtype == "q8_0" else 1e-4)  # a last bit may round an activation to its neighbour


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_quantized_experts_are_those_that_the_gguf_package_computes(family: str, tmp_path: Path) -> None:
    source = open_source(saved(CASES[family], tmp_path)[1])
    model, weights = rounded(load_torch_model(source), "q8_0"), SourceWeights(source, "q8_0")
    for part in ("up", "down"):
        name = f"blocks.1.mlp.{part}"
        expected = model.get_parameter(name).detach().numpy()
        for number, matrix in enumerate(weights.experts(name, f"{name}_bias")):
            np.testing.assert_array_equal(matrix.dequantize(), expected[number])


@pytest.mark.parametrize("kind", MAPPED)
def test_quantized_matrices_are_multiplied_as_stored(kind: str, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", kind))
    error = rms_error_of(load_backend(source, kv_dtype="float32"), load_torch_model(source), texts(2, 40))
    assert error < (1e-5 if kind in ("f32", "f16", "bf16") else ACTIVATIONS)


def test_query_key_and_value_may_have_different_types(tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "q4_k", attn_v="q6_k", token_embd="q8_0", ffn_down="f16"))
    error = rms_error_of(load_backend(source, kv_dtype="float32"), load_torch_model(source), texts(2, 40))
    assert error < ACTIVATIONS


@pytest.mark.parametrize(("kv_dtype", "limit"), [("float16", 2e-3), ("q8_0", 3e-2)])
def test_smaller_caches_cost_little(kv_dtype: str, limit: float, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "f32"))
    error = rms_error_of(load_backend(source, kv_dtype=kv_dtype), load_torch_model(source), texts(2, 60))
    assert 1e-6 < error < limit


@pytest.mark.parametrize("kind", ["f32", "q4_k"])
def test_a_mapped_file_is_not_copied(kind: str, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", kind))
    weights = SourceWeights(source)
    assert weights.interleaved(0)
    for parameter in source.parameters:
        if parameter.name.endswith("weight") and len(parameter.shape) == 2:
            segments = weights.matrix(parameter.name).segments
            stored = [source.mapped(tensor).data for tensor in parameter.tensors]
            assert all(np.shares_memory(s.data, data) for s, data in zip(segments, stored, strict=True))
