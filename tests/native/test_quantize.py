"""Quantizers: the bytes of gguf-py's where it has one, and no more error than llama.cpp's for the K types."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_files import dequantized, ggml_type, random_rows
from nextword import native
from nextword.native.matmul import row_bytes
from nextword.native.quantize import TARGETS, convert_rows, quantize

BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")


def normal(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def error(kind: str, stored: np.ndarray, values: np.ndarray) -> float:
    """Root mean square of the rounding errors, relative to that of the values."""
    wrong = dequantized(kind, stored).astype(np.float64) - values
    return float(np.sqrt(np.square(wrong).mean() / np.square(values.astype(np.float64)).mean()))


def llama_cpp_quantize(kind: str, values: np.ndarray) -> np.ndarray:
    """`values` quantized by ggml itself, without an importance matrix."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llama.cpp is the oracle: pip install xllamacpp")
    (path,) = Path(found.submodule_search_locations[0]).glob("xllamacpp*.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.restype, function.argtypes = (
        ctypes.c_size_t,
        [ctypes.c_int, pointer, pointer, count, count, count, pointer],
    )
    stored = np.empty((len(values), row_bytes(kind, values.shape[1])), np.uint8)
    function(int(ggml_type(kind)), values.ctypes.data, stored.ctypes.data, 0, *values.shape, None)
    return stored


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_32_have_the_bytes_of_gguf_py(kind: str) -> None:
    values = normal(50, 352)
    values[1] = 0
    values[2] = 0.25
    values[3] *= 1e-6
    values[4] *= 1e3
    values[5, ::2] = 0
    values[6] = np.abs(values[6])
    values[7] = np.round(values[7] * 4) / 4  # ties
    np.testing.assert_array_equal(quantize(values, kind), gguf.quants.quantize(values, ggml_type(kind)))


@pytest.mark.parametrize("kind", K_TYPES)
def test_k_types_round_no_worse_than_llama_cpp_on_random_numbers(kind: str) -> None:
    draw = np.random.default_rng(1)
    heavy = draw.standard_t(4, (32, 1024)).astype(np.float32)
    uneven = normal(32, 1024) * np.exp(draw.normal(size=(32, 1024))).astype(np.float32)
    shifted = normal(32, 1024) * 0.1 + 0.3
    for values in (normal(32, 1024), heavy, uneven, shifted, np.abs(heavy), -np.abs(heavy)):
        assert error(kind, quantize(values, kind), values) <= error(kind, llama_cpp_quantize(kind, values), values)


@pytest.mark.parametrize("kind", K_TYPES)
def test_k_types_round_no_worse_than_llama_cpp_on_a_real_models_weights(kind: str, smollm2_path: Path) -> None:
    reader = gguf.GGUFReader(smollm2_path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.9.attn_v.weight", "blk.29.ffn_down.weight"):
        tensor = tensors[name]
        weights = gguf.quants.dequantize(tensor.data[:256], tensor.tensor_type).reshape(-1)
        values = np.ascontiguousarray(weights[: weights.size // 256 * 256].reshape(-1, 256)[:256])
        assert error(kind, quantize(values, kind), values) <= error(kind, llama_cpp_quantize(kind, values), values)


@pytest.mark.parametrize(
    ("kind", "most"), [("q2_k", 0.28), ("q3_k", 0.15), ("q4_k", 0.073), ("q5_k", 0.036), ("q6_k", 0.018)]
)
def test_the_error_halves_with_each_bit(kind: str, most: float) -> None:
    values = normal(64, 512)
    assert most / 2.5 < error(kind, quantize(values, kind), values) < most


@pytest.mark.parametrize("kind", K_TYPES)
def test_zeros_and_single_numbers_are_kept(kind: str) -> None:
    values = np.zeros((3, 512), np.float32)
    values[1, 300] = -1.5
    values[2, 7] = 2.0
    stored = dequantized(kind, quantize(values, kind))
    np.testing.assert_array_equal(stored[0], 0)
    np.testing.assert_allclose(stored, values, atol=2e-3)


@pytest.mark.parametrize("kind", [*BLOCKS, *K_TYPES])
def test_a_number_that_is_not_finite_makes_its_block_nan_and_no_other(kind: str) -> None:
    values = normal(3, 768)
    values[0, 300], values[1, 0], values[2, 767] = np.nan, np.inf, -np.inf
    stored, clean = dequantized(kind, quantize(values, kind)), dequantized(kind, quantize(normal(3, 768), kind))
    size, _ = gguf.GGML_QUANT_SIZES[ggml_type(kind)]
    wrong = np.isnan(stored)
    assert [list(np.unique(np.flatnonzero(row) // size)) for row in wrong] == [[300 // size], [0], [767 // size]]
    np.testing.assert_array_equal(stored[~wrong], clean[~wrong])


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("stored_as", ["f16", "bf16", "q4_1", "q6_k"])
def test_a_stored_type_converts_as_its_numbers_do(stored_as: str, to: str) -> None:
    stored = random_rows(stored_as, 7, 768)
    expected = quantize(dequantized(stored_as, stored), to)
    np.testing.assert_array_equal(convert_rows(stored, stored_as, to, 768), expected)


def test_half_precision_rounds_to_the_nearest_even_number() -> None:
    values = np.concatenate([normal(1, 4096)[0] * scale for scale in (1, 1e-5, 1e-7, 1e-9, 1e4, 1e37)])
    special = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 2**-24, 2**-25, 1.0009765625], np.float32
    )
    values = np.concatenate([values.astype(np.float32), special])[None]
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    np.testing.assert_array_equal(quantize(values, "f16").view(np.float16), halves)
    expected = gguf.quants.quantize(values, ggml_type("bf16")).view(np.uint8)
    np.testing.assert_array_equal(quantize(values, "bf16"), expected)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k"])
def test_the_bytes_do_not_depend_on_threads(kind: str, kernels_restored: None) -> None:
    values = normal(700, 256)
    native.set_threads(1)
    expected = quantize(values, kind)
    native.set_threads(5)
    np.testing.assert_array_equal(quantize(values, kind), expected)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing is converted to iq4_nl; known: f32"):
        quantize(normal(2, 256), "iq4_nl")
    with pytest.raises(ValueError, match="a row of 288 numbers is not whole blocks of q4_k"):
        quantize(normal(2, 288), "q4_k")
    with pytest.raises(ValueError, match="do not read iq2_xxs"):
        convert_rows(random_rows("iq2_xxs", 2, 256), "iq2_xxs", "f16", 256)
    with pytest.raises(ValueError, match="has 136 bytes"):
        convert_rows(random_rows("q8_0", 2, 256), "q8_0", "f16", 128)
