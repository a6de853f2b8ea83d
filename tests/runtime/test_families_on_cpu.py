"""The CPU backend against the same model in PyTorch, for every family, from folders and from GGUF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from family_cases import CASES, saved
from family_gguf import ARCHITECTURES, saved_gguf
from gguf_files import MAPPED, write_llama
from nextword import native
from nextword.models import Model
from nextword.models.weights import load_torch_model
from nextword.runtime import CpuBackend, load_backend
from nextword.runtime.weights import SourceWeights
from nextword.weights.source import Source, open_source
from paged import Paged, grow

pytest.importorskip("transformers")
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
    assert error_of(backend, load_torch_model(folder, "float32", "cpu"), texts(3, 50)) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_a_gguf_equal_pytorchs(name: str, tmp_path: Path) -> None:
    saved_gguf(ARCHITECTURES[name], tmp_path / "tiny.gguf")
    source = open_source(tmp_path / "tiny.gguf")
    assert error_of(load_backend(source), load_torch_model(source, "float32", "cpu"), texts(3, 50)) < 1e-4


# The reference multiplies with the same rounded weights. What remains is the rounding of activations to eight bits (of
# quantized matrices): measured at 0.4 to 1.1% of the logits' root mean square.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "q8_0"])
def test_other_types_of_weights_differ_by_rounding_alone(folder: Source, dtype: str) -> None:
    exact = load_torch_model(folder, "float32", "cpu")
    error = rms_error_of(load_backend(folder, dtype, "float32"), exact, texts(2, 40))  # type: ignore[arg-type]
    assert error < {"bfloat16": 0.05, "float16": 0.01, "q8_0": 0.1}[dtype]


@pytest.mark.parametrize("kind", MAPPED)
def test_quantized_matrices_are_multiplied_as_stored(kind: str, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", kind))
    error = rms_error_of(load_backend(source, kv_dtype="float32"), load_torch_model(source, "float32", "cpu"), texts(2, 40))
    assert error < (1e-5 if kind in ("f32", "f16", "bf16") else 0.03)


def test_query_key_and_value_may_have_different_types(tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "q4_k", attn_v="q6_k", token_embd="q8_0", ffn_down="f16"))
    error = rms_error_of(load_backend(source, kv_dtype="float32"), load_torch_model(source, "float32", "cpu"), texts(2, 40))
    assert error < 0.03


@pytest.mark.parametrize(("kv_dtype", "limit"), [("float16", 2e-3), ("q8_0", 3e-2)])
def test_smaller_caches_cost_little(kv_dtype: str, limit: float, tmp_path: Path) -> None:
    source = open_source(write_llama(tmp_path / "tiny.gguf", "f32"))
    error = rms_error_of(load_backend(source, kv_dtype=kv_dtype), load_torch_model(source, "float32", "cpu"), texts(2, 60))
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
